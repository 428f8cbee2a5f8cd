/* SPDX-License-Identifier: BSD-3-Clause */
/* read-small: a whole file of bounded length: keys, secrets, lists of names. */
#ifndef MERINO_READ_SMALL_H
#define MERINO_READ_SMALL_H

#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

/* Reads PATH, a file or a pipe, on a worker (loop_work).  *DATA is malloc'd and has a
 * zero byte behind its *LEN bytes; read_small_free() overwrites it.  ST may be NULL.
 * -EFBIG when there are more than MAX bytes; -errno. */
int read_small(const char *path, size_t max, uint8_t **data, size_t *len, struct stat *st);
void read_small_free(uint8_t *data, size_t len);

#endif
