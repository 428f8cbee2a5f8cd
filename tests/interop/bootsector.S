# SPDX-License-Identifier: BSD-3-Clause
# A guest of 512 bytes: reads LBA 1 by the BIOS, inverts its bytes, writes them to LBA 100, and ends QEMU by
# isa-debug-exit: status (0 << 1) | 1 when all went well, else (the BIOS's error << 1) | 1.
	.code16
	.globl _start
_start:
	xor	%ax, %ax
	mov	%ax, %ds
	mov	%ax, %ss
	mov	$0x7c00, %sp
	cld
	mov	$0x42, %ah			# extended read
	mov	$read, %si
	int	$0x13
	jc	end
	mov	$0x8000, %bx
1:	notb	(%bx)
	inc	%bx
	cmp	$0x8200, %bx
	jne	1b
	mov	$0x4300, %ax			# extended write
	mov	$write, %si
	int	$0x13
	jc	end
	xor	%ah, %ah
end:	mov	%ah, %al
	out	%al, $0xf4
	hlt

	.balign 4
read:	.byte	16, 0				# disk address packet: size, 0,
	.word	1, 0x8000, 0			# sectors, offset and segment of the buffer,
	.quad	1				# LBA
write:	.byte	16, 0
	.word	1, 0x8000, 0
	.quad	100

	.org	510
	.word	0xaa55
