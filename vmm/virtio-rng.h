/* SPDX-License-Identifier: BSD-3-Clause */
/* virtio-rng: random bytes for the guest, from getrandom(2) (virtio 1.2, section 5.4). */
#ifndef MERINO_VMM_VIRTIO_RNG_H
#define MERINO_VMM_VIRTIO_RNG_H

#include "common/error.h"

struct machine;
struct rng;

int rng_add(struct machine *m, struct rng **out, struct error *err);
void rng_remove(struct rng *r);		/* before pci_end(), with the vCPUs stopped */

#endif
