/* SPDX-License-Identifier: BSD-3-Clause */
/* What a C library would give. */
#include "payload.h"

#include <stdarg.h>

#define PORT 0x3f8

size_t strlen(const char *s)
{
	size_t n = 0;

	while (s[n])
		n++;
	return n;
}

int strncmp(const char *a, const char *b, size_t n)
{
	for (; n; n--, a++, b++)
		if (*a != *b || !*a)
			return *a - *b;
	return 0;
}

void *memcpy(void *to, const void *from, size_t n)
{
	void *d = to;

	__asm__ volatile("rep movsb" : "+D"(d), "+S"(from), "+c"(n) : : "memory");
	return to;
}

void *memset(void *to, int c, size_t n)
{
	void *d = to;

	__asm__ volatile("rep stosb" : "+D"(d), "+c"(n) : "a"(c) : "memory");
	return to;
}

int memcmp(const void *a, const void *b, size_t n)
{
	const uint8_t *p = a, *q = b;

	for (; n; n--, p++, q++)
		if (*p != *q)
			return *p - *q;
	return 0;
}

uint64_t number(const char *text)
{
	uint64_t n = 0;

	while (*text >= '0' && *text <= '9')
		n = n * 10 + (uint64_t)(*text++ - '0');
	return n;
}

void *take(size_t bytes)
{
	static uint64_t next = 0x2000000;	/* behind payload and tables, below any initrd */
	uint64_t at = next;

	next += (bytes + 4095) & ~4095ull;
	memset((void *)at, 0, bytes);
	return (void *)at;
}

/* -- the serial port ------------------------------------------------------------------ */

static void put(char c)
{
	while (!(inb(PORT + 5) & 0x20))
		;
	outb(PORT, (uint8_t)c);
}

int serial_get(void)
{
	return inb(PORT + 5) & 1 ? inb(PORT) : -1;
}

static void put_number(uint64_t n, unsigned base)
{
	char digits[24];
	int i = 0;

	do {
		digits[i++] = "0123456789abcdef"[n % base];
		n /= base;
	} while (n);
	while (i)
		put(digits[--i]);
}

static void say_args(const char *format, va_list args)
{
	for (; *format; format++) {
		if (*format != '%') {
			if (*format == '\n')
				put('\r');
			put(*format);
			continue;
		}
		switch (*++format) {
		case 's':
			for (const char *s = va_arg(args, const char *); *s; s++)
				put(*s);
			break;
		case 'c':
			put((char)va_arg(args, uint64_t));
			break;
		case 'x':
			put_number(va_arg(args, uint64_t), 16);
			break;
		default:
			put_number(va_arg(args, uint64_t), 10);
		}
	}
}

void say(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	say_args(format, args);
	va_end(args);
}

_Noreturn void power_off(void)
{
	outw(0x604, 0x2000);
	for (;;)
		__asm__ volatile("pause");
}

_Noreturn void fail(const char *format, ...)
{
	va_list args;

	say("FAIL ");
	va_start(args, format);
	say_args(format, args);
	va_end(args);
	say("\n");
	power_off();
}
