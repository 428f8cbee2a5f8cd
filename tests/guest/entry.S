/* SPDX-License-Identifier: BSD-3-Clause */
/* The payload's entries: PVH (32-bit, ebx = hvm_start_info), Linux's 64-bit one (rsi =
 * boot_params) and that of the other CPUs (real mode).
 *
 * All go to long mode and to CPL 3 with IOPL 3 at once: some hosts' KVM emulates CPL 0
 * slowly, and runs CPL 3 natively.  Page tables are ready in the file for the same reason.
 * Such a KVM may lose the IOPL, so a task state segment allows all ports, too.
 */
#define CODE0 0x10
#define DATA0 0x18
#define CODE3 0x23
#define DATA3 0x2b
#define STACK 16384

	.section .note.pvh, "a", @note
	.align 4
	.long 4, 4, 18			/* XEN_ELFNOTE_PHYS32_ENTRY */
	.asciz "Xen"
	.long start32

	.section .head, "ax"
	.code32
	.globl start32, start64
start32:
	cli
	mov %ebx, %esi
	mov $'P', %edi
to_long:				/* esi, edi: what main() is told */
	mov $tables, %eax
	mov %eax, %cr3
	mov $0x20, %eax			/* PAE */
	mov %eax, %cr4
	mov $0xc0000080, %ecx		/* EFER.LME */
	mov $0x100, %eax
	xor %edx, %edx
	wrmsr
	mov $0x80000011, %eax		/* PG, ET, PE */
	mov %eax, %cr0
	lgdt gdt_pointer
	ljmp $CODE0, $in_long

	.org 0x200
	.code64
start64:
	mov $'L', %edi
	mov $tables, %rax
	mov %rax, %cr3
	lgdt gdt_pointer
	pushq $CODE0
	pushq $in_long
	lretq
in_long:
	mov $DATA0, %eax
	mov %eax, %ss
	mov $DATA3, %eax
	mov %eax, %ds
	mov %eax, %es
	/* A stack for each CPU, by a ticket. */
	mov $1, %eax
	lock xadd %eax, cpu_tickets
	mov %eax, %edx
	/* A descriptor for each CPU of the one task state segment. */
	shl $4, %eax
	mov $tss, %ecx
	mov %cx, gdt_tss + 2(%rax)
	shr $16, %ecx
	mov %cl, gdt_tss + 4(%rax)
	add $gdt_tss - gdt, %eax
	ltr %ax
	mov %edx, %eax
	inc %eax
	imul $STACK, %rax, %rax
	add $stacks, %rax
	mov $main, %ecx
	test %edx, %edx
	jz 1f
	mov $other_cpu, %ecx
	mov %edx, %edi
1:	pushq $DATA3
	sub $8, %rax			/* as after a call */
	pushq %rax
	pushq $0x3002			/* IOPL 3 */
	pushq $CODE3
	pushq %rcx
	iretq

/* What is copied to a page below 1 MiB for the other CPUs; they begin in real mode with
 * cs = page / 16. */
	.globl trampoline, trampoline_end
	.code16
trampoline:
	cli
	mov %cs, %ax
	mov %ax, %ds
	lgdtl trampoline_gdt - trampoline
	mov $0x11, %eax
	mov %eax, %cr0
	ljmpl $0x30, $other_protected
	.align 8
trampoline_gdt:
	.word gdt_end - gdt - 1
	.long gdt
trampoline_end:

	.code32
other_protected:
	mov $DATA0, %eax
	mov %eax, %ds
	mov %eax, %ss
	mov $0x8000, %esp		/* is not used: the tickets come before the pushes */
	jmp to_long

	.data
	.align 8
gdt:	.quad 0, 0
	.quad 0x00af9b000000ffff	/* 10 code, CPL 0 */
	.quad 0x00cf93000000ffff	/* 18 data, CPL 0 */
	.quad 0x00affb000000ffff	/* 20 code, CPL 3 */
	.quad 0x00cff3000000ffff	/* 28 data, CPL 3 */
	.quad 0x00cf9b000000ffff	/* 30 code, 32 bit */
	.quad 0
gdt_tss:
	.rept 65
	.word tss_end - tss - 1, 0, 0x8900, 0
	.quad 0
	.endr
gdt_end:
gdt_pointer:
	.word gdt_end - gdt - 1
	.quad gdt
	.globl cpu_tickets
	.align 4
cpu_tickets:
	.long 0

	.align 16
tss:	.fill 0x66, 1, 0
	.word 0x68			/* the bitmap of ports: none is forbidden */
	.fill 8192, 1, 0
	.byte 0xff
tss_end:

	/* 8 GiB one to one for CPL 3, in pages of 2 MiB. */
	.align 4096
tables:	.quad directories + 7
	.fill 511, 8, 0
directories:
	.set n, 0
	.rept 8
	.quad pages + 4096 * n + 7
	.set n, n + 1
	.endr
	.fill 504, 8, 0
pages:	.set n, 0
	.rept 4096
	.quad n * 0x200000 + 0x87
	.set n, n + 1
	.endr

	.bss
	.align 16
	.globl stacks
stacks:	.skip STACK * 65
