/* SPDX-License-Identifier: BSD-3-Clause */
/* payload: a guest of our own, for tests and benches.
 *
 * It runs at CPL 3 with IOPL 3, interrupts off, 8 GiB mapped one to one, and does what its
 * command line asks, word after word (main.c has the list).  It prints to the serial port
 * and ends by powering off.  PASS or FAIL is what it prints, last.
 */
#ifndef GUEST_PAYLOAD_H
#define GUEST_PAYLOAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

static inline void outb(uint16_t port, uint8_t v)
{
	__asm__ volatile("outb %0, %1" : : "a"(v), "Nd"(port) : "memory");
}

static inline void outw(uint16_t port, uint16_t v)
{
	__asm__ volatile("outw %0, %1" : : "a"(v), "Nd"(port) : "memory");
}

static inline void outl(uint16_t port, uint32_t v)
{
	__asm__ volatile("outl %0, %1" : : "a"(v), "Nd"(port) : "memory");
}

static inline uint8_t inb(uint16_t port)
{
	uint8_t v;

	__asm__ volatile("inb %1, %0" : "=a"(v) : "Nd"(port) : "memory");
	return v;
}

static inline uint16_t inw(uint16_t port)
{
	uint16_t v;

	__asm__ volatile("inw %1, %0" : "=a"(v) : "Nd"(port) : "memory");
	return v;
}

static inline uint32_t inl(uint16_t port)
{
	uint32_t v;

	__asm__ volatile("inl %1, %0" : "=a"(v) : "Nd"(port) : "memory");
	return v;
}

static inline uint64_t rdtsc(void)
{
	uint32_t lo, hi;

	__asm__ volatile("lfence; rdtsc" : "=a"(lo), "=d"(hi) : : "memory");
	return (uint64_t)hi << 32 | lo;
}

struct cpuid {
	uint32_t a, b, c, d;
};

static inline struct cpuid cpuid(uint32_t leaf, uint32_t index)
{
	struct cpuid r;

	__asm__ volatile("cpuid" : "=a"(r.a), "=b"(r.b), "=c"(r.c), "=d"(r.d) : "a"(leaf), "c"(index));
	return r;
}

/* lib.c.  FORMAT knows %s %c %u %x %d, all of them 64 bits wide but %s. */
void say(const char *format, ...);
int serial_get(void);			/* the next byte, or -1 */


size_t strlen(const char *s);
int strncmp(const char *a, const char *b, size_t n);
void *memcpy(void *to, const void *from, size_t n);
void *memset(void *to, int c, size_t n);
int memcmp(const void *a, const void *b, size_t n);
uint64_t number(const char *text);	/* decimal */

/* memory.c: what the loader told. */
struct range {
	uint64_t base, len;
	uint32_t type;
};
extern struct range map[16];
extern unsigned n_map;
extern uint64_t rsdp, initrd, initrd_len;
extern const char *cmdline;
void told_by_pvh(uint64_t at);
void told_by_linux(uint64_t at);

/* A page-aligned piece of memory that is never given back; zeroes. */
void *take(size_t bytes);

/* Once each, on every CPU that cpus= has started, from 1 on. */
void other_cpus_do(void (*what)(unsigned cpu));

uint64_t tsc_khz(void);			/* of CPUID, else 1 GHz is assumed */

_Noreturn void power_off(void);
_Noreturn void fail(const char *format, ...);

#endif
