/* SPDX-License-Identifier: BSD-3-Clause */
/* ELF kernels for x86-64: through the PVH entry where a note names one, else by the ELF
 * entry in long mode, as vmlinux wants it.
 *
 * Segments go to their physical addresses, which must be low memory above 1 MiB.
 */
#include <elf.h>
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "common/checked.h"
#include "vmm/boot.h"
#include "vmm/machine.h"

#define SEGMENTS_MAX 64u
#define NOTES_MAX 4096u			/* bytes of a note segment that are looked at */
#define NOTE_PVH_ENTRY 18u		/* XEN_ELFNOTE_PHYS32_ENTRY */

static bool read_all(int fd, void *buf, size_t len, uint64_t off)
{
	ssize_t n;

	do {
		n = off > INT64_MAX ? 0 : pread(fd, buf, len, (off_t)off);
	} while (n < 0 && errno == EINTR);
	return n == (ssize_t)len;
}

static int check_header(const Elf64_Ehdr *h, struct error *err)
{
	if (h->e_ident[EI_CLASS] != ELFCLASS64 || h->e_machine != EM_X86_64)
		return error_set(err, -ENOEXEC, "the kernel is not an ELF file for x86-64");
	if (h->e_ident[EI_DATA] != ELFDATA2LSB || (h->e_type != ET_EXEC && h->e_type != ET_DYN))
		return error_set(err, -ENOEXEC, "the kernel's ELF header makes no sense");
	if (h->e_phentsize != sizeof(Elf64_Phdr) || !h->e_phnum || h->e_phnum > SEGMENTS_MAX)
		return error_set(err, -ENOEXEC, "the kernel's ELF header makes no sense: it has %u segments",
				 h->e_phnum);
	return 0;
}

static int load_segment(struct machine *m, const Elf64_Phdr *p, struct boot_kernel *k,
			struct error *err)
{
	uint64_t end;

	if (!p->p_memsz)
		return 0;
	if (p->p_filesz > p->p_memsz)
		return error_set(err, -ENOEXEC, "the kernel's ELF header makes no sense: "
				 "a segment has more bytes than memory");
	if (p->p_paddr < BOOT_KERNEL || !checked_add(p->p_paddr, p->p_memsz, &end) ||
	    end > m->memory.low)
		return error_set(err, -ENOMEM, "the kernel does not fit into the guest's memory: "
				 "it wants %llu bytes at 0x%llx", (unsigned long long)p->p_memsz,
				 (unsigned long long)p->p_paddr);
	memset((uint8_t *)memory_at(&m->memory, p->p_paddr, p->p_memsz) + p->p_filesz, 0,
	       p->p_memsz - p->p_filesz);
	k->end = max_u64(k->end, end);
	return boot_read(m, m->kernel, p->p_offset, p->p_paddr, p->p_filesz, "kernel", err);
}

/* The PVH entry out of NOTES, or 0. */
static uint32_t find_pvh(const uint8_t *notes, uint64_t len, uint64_t align)
{
	uint64_t at = 0;

	if (align != 8)
		align = 4;
	while (checked_range(at, sizeof(Elf64_Nhdr), len)) {
		Elf64_Nhdr n;
		uint64_t name = at + sizeof(n), desc;

		memcpy(&n, notes + at, sizeof(n));
		desc = align_up(name + n.n_namesz, align);
		at = align_up(desc + n.n_descsz, align);
		if (!checked_range(name, n.n_namesz, len) || !checked_range(desc, n.n_descsz, len))
			return 0;
		if (n.n_type == NOTE_PVH_ENTRY && n.n_namesz == 4 && !memcmp(notes + name, "Xen", 4) &&
		    n.n_descsz >= 4) {
			uint32_t entry;

			memcpy(&entry, notes + desc, 4);
			return entry;
		}
	}
	return 0;
}

static uint32_t read_notes(struct machine *m, const Elf64_Phdr *p)
{
	uint8_t notes[NOTES_MAX];
	uint64_t len = min_u64(p->p_filesz, sizeof(notes));

	return read_all(m->kernel, notes, len, p->p_offset) ? find_pvh(notes, len, p->p_align) : 0;
}

int boot_elf(struct machine *m, uint64_t size, struct boot_kernel *k, struct error *err)
{
	Elf64_Ehdr h;
	Elf64_Phdr p[SEGMENTS_MAX];
	uint32_t pvh = 0;
	int rc;

	if (size < sizeof(h) || !read_all(m->kernel, &h, sizeof(h), 0) ||
	    memcmp(h.e_ident, ELFMAG, SELFMAG))
		return 1;
	rc = check_header(&h, err);
	if (rc)
		return rc;
	if (!read_all(m->kernel, p, h.e_phnum * sizeof(*p), h.e_phoff))
		return error_set(err, -ENOEXEC, "the kernel is cut short");
	for (unsigned i = 0; i < h.e_phnum && !rc; i++) {
		if (p[i].p_type == PT_LOAD)
			rc = load_segment(m, &p[i], k, err);
		else if (p[i].p_type == PT_NOTE && !pvh)
			pvh = read_notes(m, &p[i]);
	}
	if (rc)
		return rc;
	k->linux_params = !pvh;
	k->entry = pvh ? pvh : h.e_entry;
	if (k->entry < BOOT_KERNEL || k->entry >= k->end)
		return error_set(err, -ENOEXEC, "the kernel's entry 0x%llx is outside of it",
				 (unsigned long long)k->entry);
	return 0;
}
