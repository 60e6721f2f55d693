/* What this machine can give. */
#ifndef BASE_MACHINE_H
#define BASE_MACHINE_H

#include <stdint.h>

/* Bytes that may still be taken on this host: what the kernel thinks is available, or what a memory limit of the batch system or the
 * container leaves.  0: not known. */
int64_t machine_memory(void);
int machine_processors(void); /* that are online, whoever may use them */

#endif
