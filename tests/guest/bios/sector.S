/* SPDX-License-Identifier: BSD-3-Clause */
/* What a BIOS boots: the first 4 KiB of a disk, in real mode, with the BIOS alone to help.
 *
 *	sector 0	loads sectors 1 to 7 behind itself, and goes on there
 *	sector 8	how often it was booted, 4 bytes, which it counts
 *	the last one	a line that it prints
 *
 * It prints the BIOS's memory map, resets the machine after the first boot, and powers off by
 * ACPI's port after the second.  Before it does, two ticks of the clock have to come: the BIOS
 * prints its last character at one of them.  Every line ends with \r\n.
 */
	.code16
	.text
	.globl	_start
_start:
	ljmp	$0, $1f
1:	xor	%ax, %ax
	mov	%ax, %ds
	mov	%ax, %es
	mov	%ax, %ss
	mov	$0x7c00, %sp
	sti
	cld
	mov	%dl, drive
	mov	$hello, %si
	call	print
	movw	$7, count
	movw	$0x7e00, buffer
	movl	$1, lba
	mov	$0x42, %ah
	call	disk
	jmp	second

/* Prints the text at DS:SI, up to a 0. */
print:
	lodsb
	test	%al, %al
	jz	9f
	mov	$0x0e, %ah
	mov	$7, %bx
	int	$0x10
	jmp	print
9:	ret

/* Function AH of the disk, with the packet below; ends here when that fails. */
disk:
	mov	$packet, %si
	mov	drive, %dl
	int	$0x13
	jc	fail
	ret
fail:
	mov	$failed, %si
	call	print
	call	tick

/* ACPI's power-off (PLATFORM_PM1_CONTROL). */
off:
	mov	$0x604, %dx
	mov	$0x2000, %ax
	out	%ax, (%dx)
9:	hlt
	jmp	9b

drive:	.byte	0
	.balign	4
packet:	.byte	16, 0
count:	.word	0
buffer:	.word	0, 0
lba:	.quad	0
hello:	.asciz	"sector 0\r\n"
failed:	.asciz	"error\r\n"
	.org	510
	.word	0xaa55

/* -- sectors 1 to 7 ------------------------------------------------------------------- */

second:
	mov	$loaded, %si
	call	print
	call	map
	call	last
	mov	$0x86, %ah			/* 20 ms by the BIOS's other clock */
	xor	%cx, %cx
	mov	$20000, %dx
	int	$0x15
	jc	fail
	mov	$waited, %si
	call	print
	movw	$1, count
	movw	$area, buffer
	movl	$8, lba
	mov	$0x42, %ah
	call	disk
	incl	area
	mov	$0x4300, %ax
	call	disk
	mov	area, %eax
	mov	$boot, %si
	call	number
	mov	$newline, %si
	call	print
	call	tick
	cmpl	$1, area
	jne	off
	mov	$0xcf9, %dx			/* a hard reset */
	mov	$6, %al
	out	%al, (%dx)
9:	hlt
	jmp	9b

/* "map BASE LENGTH TYPE", each as two words of 32 bits. */
map:
	xor	%ebx, %ebx
1:	push	%ebx
	mov	$map_text, %si
	call	print
	pop	%ebx
	mov	$0xe820, %eax
	mov	$0x534d4150, %edx
	mov	$20, %ecx
	mov	$area, %di
	int	$0x15
	jc	fail
	push	%ebx
	mov	$area + 4, %di
	mov	$space, %si
	call	field
	mov	$area, %di
	mov	$none, %si
	call	field
	mov	$area + 12, %di
	mov	$space, %si
	call	field
	mov	$area + 8, %di
	mov	$none, %si
	call	field
	mov	$area + 16, %di
	mov	$space, %si
	call	field
	mov	$newline, %si
	call	print
	pop	%ebx
	test	%ebx, %ebx
	jnz	1b
	ret

field:
	mov	(%di), %eax

/* The text at SI, then EAX in hexadecimal. */
number:
	push	%eax
	call	print
	pop	%eax
	mov	$8, %cx
1:	rol	$4, %eax
	push	%eax
	and	$15, %al
	cmp	$10, %al
	jb	2f
	add	$'a' - '0' - 10, %al
2:	add	$'0', %al
	mov	$0x0e, %ah
	mov	$7, %bx
	int	$0x10
	pop	%eax
	loop	1b
	ret

/* The disk's last sector, a text. */
last:
	movw	$26, area
	mov	$0x48, %ah
	mov	drive, %dl
	mov	$area, %si
	int	$0x13
	jc	fail
	mov	area + 16, %eax
	dec	%eax
	mov	%eax, lba
	movw	$1, count
	movw	$area, buffer
	mov	$0x42, %ah
	call	disk
	mov	$area, %si
	jmp	print

/* Until the clock of the BIOS, which an interrupt counts, has moved twice. */
tick:
	mov	$2, %cx
1:	mov	0x46c, %eax
2:	hlt
	cmp	0x46c, %eax
	je	2b
	loop	1b
	ret

loaded:	.asciz	"sector 1\r\n"
map_text: .asciz "map"
waited:	.asciz	"waited\r\n"
boot:	.asciz	"boot "
space:	.asciz	" "
newline: .ascii	"\r\n"
none:	.asciz	""
	.balign	16
	.org	4096 - 512
area:	.org	4096
