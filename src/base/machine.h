/* What this machine can give. */
#ifndef BASE_MACHINE_H
#define BASE_MACHINE_H

#include <stdint.h>

/* Bytes that may still be taken on this host: what the kernel thinks is available, or what a memory limit of the batch system or the
 * container leaves.  0: not known. */
int64_t machine_memory(void);
void machine_processor_name(char *out, int room); /* its kind, as the kernel names it; "" where it does not say */
int machine_processors(void);                     /* that are online, whoever may use them */

#endif
