/* Which weights are these?  For caches and journals that must not be mixed up with another model's: a SHA-256 over config.json and, of every
 * *.safetensors file of the directory by name, its size and 64 KiB blocks spread over it.  Two trainings of one shape differ in nearly
 * every block, and a large model is not read whole for it.  Not a proof of integrity. */
#ifndef JOBS_FINGERPRINT_H
#define JOBS_FINGERPRINT_H

#include "base/err.h"

status fingerprint_model(char hex[65], const char *directory, struct err *e);

#endif
