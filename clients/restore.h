/* SPDX-License-Identifier: BSD-3-Clause */
/* restore: disks of a restore point become images, devices or exports again. */
#ifndef MERINO_RESTORE_H
#define MERINO_RESTORE_H

int restore_main(int argc, char **argv);

#endif
