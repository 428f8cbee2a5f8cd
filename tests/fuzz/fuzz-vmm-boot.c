// SPDX-License-Identifier: BSD-3-Clause
/* Fuzzes what boots a kernel: the input is a bzImage or an ELF file of a stranger's, and how long
 * its initrd is.  What is accepted begins in low memory; what is refused says why. */
#define _GNU_SOURCE
#include "tests/fuzz/fuzz.h"

#include <sys/mman.h>
#include <unistd.h>

#include "vmm/boot.h"
#include "vmm/machine.h"
#include "vmm/vcpu.h"

enum { MEMORY = 16 << 20 };

static struct machine_config config = { .vcpus = 3, .kernel = "kernel", .cmdline = "console=ttyS0" };
static struct machine machine = { .config = &config, .initrd = -1 };
static int initrd;

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	struct error err = ERROR_INIT;

	machine.kernel = memfd_create("kernel", MFD_CLOEXEC);
	initrd = memfd_create("initrd", MFD_CLOEXEC);
	fuzz_assert(machine.kernel >= 0 && initrd >= 0);
	fuzz_assert(!memory_make(&machine.memory, MEMORY, &err));
	return 0;
}

/* Sparse: up to 8 EiB. */
static void set_initrd(struct fuzz_bytes *b)
{
	uint8_t how = fuzz_take(b, 1);
	uint64_t size = fuzz_take(b, how & 1 ? 8 : 3) & INT64_MAX;

	machine.initrd = how & 2 && !ftruncate(initrd, (off_t)size) ? initrd : -1;
}

int fuzz_input(const uint8_t *data, size_t size)
{
	struct fuzz_bytes b = { data, size };
	struct vcpu_entry e = { 0 };
	struct error err = ERROR_INIT;
	int rc;

	set_initrd(&b);
	fuzz_assert(!ftruncate(machine.kernel, 0));
	fuzz_assert(pwrite(machine.kernel, b.at, b.left, 0) == (ssize_t)b.left);
	rc = boot_load(&machine, &e, &err);
	fuzz_assert(rc <= 0 && (!rc || err.text[0]));
	if (rc)
		return 0;
	fuzz_assert(e.mode == VCPU_PROTECTED || e.mode == VCPU_LONG);
	fuzz_assert(e.rip >= BOOT_KERNEL && e.rip < MEMORY);
	return 0;
}
