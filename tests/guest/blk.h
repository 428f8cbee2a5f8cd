/* SPDX-License-Identifier: BSD-3-Clause */
/* blk: the payload's words about disks and random numbers (blk.c and rng.c have the lists). */
#ifndef GUEST_BLK_H
#define GUEST_BLK_H

#include "payload.h"

void run_abandon(uint64_t n);
void run_disk(uint64_t n);
void run_disk_test(uint64_t n);
void run_sectors(uint64_t n);
void run_random(uint64_t n);
void run_depth(uint64_t n);
void run_size(uint64_t n);
void run_pieces(uint64_t n);
void run_verify(uint64_t ms);
void run_ring(uint64_t blocks);
void run_randread(uint64_t ms);
void run_randwrite(uint64_t ms);
void run_seqread(uint64_t ms);
void run_seqwrite(uint64_t ms);

#endif
