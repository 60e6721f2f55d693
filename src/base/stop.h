/* Being asked to stop.
 *
 * SIGUSR1 is the batch system's warning that time runs out (Slurm's --signal): finish the step, write what there is, exit 75.
 * SIGTERM and SIGINT under mpirun leave about a second: what matters is already on disk, leave at the next look.
 * A signal handler can reach nothing but a static variable, so this is the one place with hidden state.
 */
#ifndef BASE_STOP_H
#define BASE_STOP_H

enum stop { STOP_NO, STOP_SOON /* SIGUSR1: finish the step */, STOP_NOW /* SIGTERM, SIGINT */ };

void stop_install(void);
enum stop stop_asked(void);
void stop_reset(void); /* for tests */

#endif
