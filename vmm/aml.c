/* SPDX-License-Identifier: BSD-3-Clause */
/* ACPI's byte code: see aml.h. */
#include "vmm/aml.h"

#include <assert.h>
#include <string.h>

#include "vmm/le.h"

#define OP_NAME 0x08
#define OP_BYTE 0x0a
#define OP_WORD 0x0b
#define OP_DWORD 0x0c
#define OP_STRING 0x0d
#define OP_QWORD 0x0e
#define OP_SCOPE 0x10
#define OP_BUFFER 0x11
#define OP_PACKAGE 0x12
#define OP_EXT 0x5b
#define OP_DEVICE 0x82			/* after EXT */

void aml_bytes(struct aml *a, const void *p, uint32_t n)
{
	if (a->full || n > a->size - a->len) {
		a->full = true;
		return;
	}
	memcpy(a->at + a->len, p, n);
	a->len += n;
}

void aml_byte(struct aml *a, uint8_t v)
{
	aml_bytes(a, &v, 1);
}

static void word(struct aml *a, uint16_t v)
{
	uint8_t b[2];

	put_le16(b, v);
	aml_bytes(a, b, 2);
}

static void dword(struct aml *a, uint32_t v)
{
	uint8_t b[4];

	put_le32(b, v);
	aml_bytes(a, b, 4);
}

/* -- lengths: always three bytes, 20 bits, counted from themselves -------------------- */

static uint32_t open_length(struct aml *a)
{
	uint32_t at = a->len;

	aml_bytes(a, "\0\0", 3);
	return at;
}

void aml_close(struct aml *a, uint32_t opened)
{
	uint32_t n = a->len - opened;

	if (a->full)
		return;
	assert(n < 1u << 20);
	a->at[opened] = (uint8_t)(0x80 | (n & 15));
	a->at[opened + 1] = (uint8_t)(n >> 4);
	a->at[opened + 2] = (uint8_t)(n >> 12);
}

static void name(struct aml *a, const char *text)
{
	if (*text == '\\')
		aml_byte(a, (uint8_t)*text++);
	assert(strlen(text) == 4);
	aml_bytes(a, text, 4);
}

uint32_t aml_scope(struct aml *a, const char *text)
{
	uint32_t at;

	aml_byte(a, OP_SCOPE);
	at = open_length(a);
	name(a, text);
	return at;
}

uint32_t aml_device(struct aml *a, const char *text)
{
	uint32_t at;

	aml_byte(a, OP_EXT);
	aml_byte(a, OP_DEVICE);
	at = open_length(a);
	name(a, text);
	return at;
}

uint32_t aml_package(struct aml *a, uint8_t elements)
{
	uint32_t at;

	aml_byte(a, OP_PACKAGE);
	at = open_length(a);
	aml_byte(a, elements);
	return at;
}

/* -- values --------------------------------------------------------------------------- */

void aml_name(struct aml *a, const char *text)
{
	aml_byte(a, OP_NAME);
	name(a, text);
}

void aml_int(struct aml *a, uint64_t v)
{
	if (v <= 1) {
		aml_byte(a, (uint8_t)v);
	} else if (v <= UINT8_MAX) {
		aml_byte(a, OP_BYTE);
		aml_byte(a, (uint8_t)v);
	} else if (v <= UINT16_MAX) {
		aml_byte(a, OP_WORD);
		word(a, (uint16_t)v);
	} else if (v <= UINT32_MAX) {
		aml_byte(a, OP_DWORD);
		dword(a, (uint32_t)v);
	} else {
		aml_byte(a, OP_QWORD);
		dword(a, (uint32_t)v);
		dword(a, (uint32_t)(v >> 32));
	}
}

void aml_text(struct aml *a, const char *text)
{
	aml_byte(a, OP_STRING);
	aml_bytes(a, text, (uint32_t)strlen(text) + 1);
}

static uint32_t hex(char c)
{
	return (uint32_t)(c <= '9' ? c - '0' : c - 'A' + 10);
}

/* Three letters of five bits and four digits, the most significant byte first. */
void aml_eisa(struct aml *a, const char *id)
{
	uint32_t v = (uint32_t)(id[0] - '@') << 26 | (uint32_t)(id[1] - '@') << 21 |
		     (uint32_t)(id[2] - '@') << 16 | hex(id[3]) << 12 | hex(id[4]) << 8 |
		     hex(id[5]) << 4 | hex(id[6]);

	assert(strlen(id) == 7);
	aml_byte(a, OP_DWORD);
	dword(a, __builtin_bswap32(v));
}

/* -- resources (ACPI 6.4, 6.4) ---------------------------------------------------------- */

#define TEMPLATE_SIZE 4u		/* behind the length: a word constant, its length */

uint32_t aml_template(struct aml *a)
{
	uint32_t at;

	aml_byte(a, OP_BUFFER);
	at = open_length(a);
	aml_byte(a, OP_WORD);
	word(a, 0);
	return at;
}

void aml_template_close(struct aml *a, uint32_t opened)
{
	aml_byte(a, 0x79);		/* end tag; its checksum 0 counts as right */
	aml_byte(a, 0);
	if (!a->full)
		put_le16(a->at + opened + TEMPLATE_SIZE, (uint16_t)(a->len - opened - 6));
	aml_close(a, opened);
}

void aml_ports(struct aml *a, uint16_t base, uint8_t len)
{
	aml_byte(a, 0x47);
	aml_byte(a, 1);			/* decodes 16 bits */
	word(a, base);
	word(a, base);
	aml_byte(a, 1);
	aml_byte(a, len);
}

void aml_irq(struct aml *a, uint8_t line)
{
	aml_byte(a, 0x22);
	word(a, (uint16_t)(1u << line));
}

void aml_memory(struct aml *a, uint32_t base, uint32_t len)
{
	aml_byte(a, 0x86);
	word(a, 9);
	aml_byte(a, 1);			/* may be written */
	dword(a, base);
	dword(a, len);
}

#define PRODUCER_FIXED 0x0c		/* both ends are fixed, decodes positively */

static void bridge_words(struct aml *a, uint8_t type, uint8_t flags, uint16_t first, uint16_t last)
{
	aml_byte(a, 0x88);
	word(a, 13);
	aml_byte(a, type);
	aml_byte(a, PRODUCER_FIXED);
	aml_byte(a, flags);
	word(a, 0);
	word(a, first);
	word(a, last);
	word(a, 0);
	word(a, (uint16_t)(last - first + 1));
}

void aml_bridge_buses(struct aml *a, uint16_t first, uint16_t last)
{
	bridge_words(a, 2, 0, first, last);
}

void aml_bridge_ports(struct aml *a, uint16_t first, uint16_t last)
{
	bridge_words(a, 1, 3, first, last);
}

void aml_bridge_memory(struct aml *a, uint32_t first, uint32_t last)
{
	aml_byte(a, 0x87);
	word(a, 23);
	aml_byte(a, 0);
	aml_byte(a, PRODUCER_FIXED);
	aml_byte(a, 1);			/* not cached, may be written */
	dword(a, 0);
	dword(a, first);
	dword(a, last);
	dword(a, 0);
	dword(a, last - first + 1);
}
