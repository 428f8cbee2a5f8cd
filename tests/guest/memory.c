/* SPDX-License-Identifier: BSD-3-Clause */
/* What the loader told: by hvm_start_info or by boot_params. */
#include "payload.h"

struct range map[16];
unsigned n_map;
uint64_t rsdp, initrd, initrd_len;
const char *cmdline = "";

/* In memory anything may lie anywhere. */
static uint64_t get(uint64_t at, unsigned bytes)
{
	uint64_t v = 0;

	memcpy(&v, (const void *)at, bytes);
	return v;
}

static void add(uint64_t base, uint64_t len, uint32_t type)
{
	if (n_map < 16)
		map[n_map++] = (struct range){ base, len, type };
}

void told_by_pvh(uint64_t at)
{
	if (get(at, 4) != 0x336ec578)
		fail("hvm_start_info has magic %x", get(at, 4));
	if (get(at + 24, 8))
		cmdline = (const char *)get(at + 24, 8);
	rsdp = get(at + 32, 8);
	if (get(at + 12, 4)) {
		initrd = get(get(at + 16, 8), 8);
		initrd_len = get(get(at + 16, 8) + 8, 8);
	}
	if (get(at + 4, 4) < 1)
		return;
	for (uint64_t i = 0, n = get(at + 48, 4), p = get(at + 40, 8); i < n; i++, p += 24)
		add(get(p, 8), get(p + 8, 8), (uint32_t)get(p + 16, 4));
}

void told_by_linux(uint64_t at)
{
	if (get(at + 0x202, 4) != 0x53726448)
		fail("boot_params have magic %x", get(at + 0x202, 4));
	cmdline = (const char *)get(at + 0x228, 4);
	rsdp = get(at + 0x70, 8);
	initrd = get(at + 0x218, 4);
	initrd_len = get(at + 0x21c, 4);
	for (uint64_t i = 0, n = get(at + 0x1e8, 1), p = at + 0x2d0; i < n; i++, p += 20)
		add(get(p, 8), get(p + 8, 8), (uint32_t)get(p + 16, 4));
}
