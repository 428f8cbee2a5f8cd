/* SPDX-License-Identifier: BSD-3-Clause */
/* The payload's main: says how it was booted, then runs the words of its command line.
 *
 *	map		prints the memory map
 *	memory		writes and reads both ends of each RAM range below 8 GiB
 *	initrd		prints the initrd's length and a sum over it
 *	cpuid		prints what CPUID says of the machine
 *	cpus=N		starts the others; FAIL unless there are N
 *	resets=N	resets the machine by its port until that happened N times
 *	fault		a triple fault, once
 *	button		waits for the power button
 *	echo		sends back what comes over the serial line, up to a 'q'
 *	flood=N		prints N KiB
 *	count=N		counts to N million; prints how long it took
 *	hang		for ever
 * and those of blk.c and abandon.c.
 */
#include "blk.h"
#include "payload.h"

void main(int how, uint64_t arg);
void other_cpu(unsigned ticket);

/* Memory keeps its contents over a reset. */
struct kept {
	uint64_t magic, resets, faults;
};
#define KEPT ((volatile struct kept *)0x1f00000)
#define KEPT_MAGIC 0x6f6e6972656d2121ull

uint64_t tsc_khz(void)
{
	struct cpuid c = cpuid(0x40000000, 0);

	if (c.a >= 0x40000010 && cpuid(0x40000010, 0).a)
		return cpuid(0x40000010, 0).a;
	return 1000000;
}

/* -- words ---------------------------------------------------------------------------- */

static void run_map(uint64_t n)
{
	for (unsigned i = 0; i < n_map; i++)
		say("map %x %x %u\n", map[i].base, map[i].len, (uint64_t)map[i].type);
}

static void check_page(uint64_t at)
{
	volatile uint64_t *p = (volatile uint64_t *)at;
	uint64_t was = *p;

	*p = at ^ KEPT_MAGIC;
	if (*p != (at ^ KEPT_MAGIC))
		fail("memory at %x", at);
	*p = was;
}

static void run_memory(uint64_t n)
{
	uint64_t bytes = 0;

	for (unsigned i = 0; i < n_map; i++) {
		if (map[i].type != 1)
			continue;
		bytes += map[i].len;
		if (map[i].base + map[i].len > 8ull << 30)
			continue;
		check_page(map[i].base);
		check_page(map[i].base + map[i].len - 8);
	}
	say("memory %u\n", bytes);
}

static void run_initrd(uint64_t n)
{
	uint64_t sum = 0;

	for (uint64_t i = 0; i < initrd_len; i++)
		sum = sum * 31 + ((const uint8_t *)initrd)[i];
	say("initrd %x %u %x\n", initrd, initrd_len, sum);
}

static void run_cpuid(uint64_t n)
{
	struct cpuid c = cpuid(0x40000000, 0);
	char name[13] = { 0 };

	memcpy(name, &c.b, 4);
	memcpy(name + 4, &c.c, 4);
	memcpy(name + 8, &c.d, 4);
	say("hypervisor %s tsc-khz %u cores %u id %u\n", name, tsc_khz(),
	    (uint64_t)cpuid(0xb, 1).b & 0xffff, (uint64_t)cpuid(0xb, 0).d);
}

static void triple_fault(void)
{
	/* There is no interrupt table. */
	__asm__ volatile("ud2");
}

static void run_resets(uint64_t n)
{
	if (KEPT->resets < n) {
		KEPT->resets++;
		say("reset %u\n", KEPT->resets);
		outb(0x64, 0xfe);
		for (;;)
			__asm__ volatile("pause");
	}
	say("resets %u\n", KEPT->resets);
}

static void run_fault(uint64_t n)
{
	if (!KEPT->faults) {
		KEPT->faults = 1;
		say("fault\n");
		triple_fault();
	}
	say("faults %u\n", KEPT->faults);
}

static void run_button(uint64_t n)
{
	say("waits for the button\n");
	while (!(inw(0x600) & 0x100))
		__asm__ volatile("pause");
	outw(0x600, 0x100);
	if (inw(0x600) & 0x100)
		fail("the button's status is not cleared");
	say("button\n");
}

static void run_echo(uint64_t n)
{
	say("echo\n");
	for (int c = 0; c != 'q';) {
		c = serial_get();
		if (c >= 0)
			say("%c", (uint64_t)c);
	}
	say("\n");
}

/* Lines of 64 bytes, 16 at once: a byte each would take minutes where exits are slow. */
static void run_flood(uint64_t n)
{
	static char piece[1024];

	for (uint64_t i = 0; i < n * 16; i++) {
		char *line = piece + i % 16 * 64;
		uint64_t left = 100000 + i;
		const char *from = piece;
		uint64_t bytes = sizeof(piece);

		memset(line, 'x', 64);
		for (int digit = 5; digit >= 0; digit--, left /= 10)
			line[digit] = (char)('0' + left % 10);
		line[63] = '\n';
		if (i % 16 != 15)
			continue;
		while (!(inb(0x3fd) & 0x20))
			__asm__ volatile("pause");
		__asm__ volatile("rep outsb" : "+S"(from), "+c"(bytes) : "d"(0x3f8) : "memory");
	}
}

static void run_count(uint64_t n)
{
	uint64_t from = rdtsc(), left = n * 1000000;

	__asm__ volatile("1: dec %0; jnz 1b" : "+r"(left));
	say("count %u million in %u us\n", n, (rdtsc() - from) * 1000 / tsc_khz());
}

static void run_hang(uint64_t n)
{
	say("hang\n");
	for (;;)
		__asm__ volatile("pause");
}

/* -- the other CPUs --------------------------------------------------------------------- */

extern uint8_t trampoline[], trampoline_end[];
static volatile unsigned others;
static void (*volatile job)(unsigned cpu);

#define TRAMPOLINE 0x8000u
#define APIC_COMMAND ((volatile uint32_t *)0xfee00300)

void other_cpu(unsigned ticket)
{
	__atomic_fetch_add(&others, 1, __ATOMIC_SEQ_CST);
	while (!job)
		__asm__ volatile("pause");
	job(ticket);
	for (;;)
		__asm__ volatile("pause");
}

void other_cpus_do(void (*what)(unsigned cpu))
{
	job = what;
}

static void wait_ms(uint64_t ms)
{
	uint64_t end = rdtsc() + ms * tsc_khz();

	while (rdtsc() < end)
		__asm__ volatile("pause");
}

static void run_cpus(uint64_t n)
{
	memcpy((void *)(uint64_t)TRAMPOLINE, trampoline, (size_t)(trampoline_end - trampoline));
	*APIC_COMMAND = 0xc4500;			/* INIT to all but self */
	wait_ms(10);
	*APIC_COMMAND = 0xc4600 | TRAMPOLINE >> 12;	/* STARTUP */
	for (unsigned ms = 0; ms < 60000 && others < n - 1; ms++)
		wait_ms(1);
	wait_ms(2);
	if (others != n - 1)
		fail("cpus %u of %u", (uint64_t)others + 1, n);
	say("cpus %u\n", n);
}

/* -- main --------------------------------------------------------------------------------- */

static const struct word {
	const char *name;
	void (*run)(uint64_t n);
} words[] = {
	{ "map", run_map }, { "memory", run_memory }, { "initrd", run_initrd },
	{ "cpuid", run_cpuid }, { "cpus=", run_cpus }, { "resets=", run_resets },
	{ "fault", run_fault }, { "button", run_button }, { "echo", run_echo },
	{ "flood=", run_flood },
	{ "count=", run_count }, { "hang", run_hang },
	{ "abandon=", run_abandon },
	{ "disk=", run_disk }, { "disk-test", run_disk_test }, { "sectors=", run_sectors },
	{ "depth=", run_depth }, { "size=", run_size }, { "pieces=", run_pieces },
	{ "verify=", run_verify }, { "ring=", run_ring },
	{ "randread=", run_randread }, { "random", run_random },
	{ "randwrite=", run_randwrite }, { "seqread=", run_seqread }, { "seqwrite=", run_seqwrite },
};

static void run_word(const char *text, size_t len)
{
	for (unsigned i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
		size_t n = strlen(words[i].name);
		bool takes = words[i].name[n - 1] == '=';

		if (len >= n && (takes || len == n) && !strncmp(text, words[i].name, n))
			return words[i].run(number(text + n));
	}
	if (len < 6 || strncmp(text, "quiet=", 6))
		fail("a word that the payload does not know");
}

static void run_all(const char *p)
{
	while (*p) {
		size_t n = 0;

		while (p[n] && p[n] != ' ')
			n++;
		if (n)
			run_word(p, n);
		p += n;
		while (*p == ' ')
			p++;
	}
}

void main(int how, uint64_t arg)
{
	if (how == 'P')
		told_by_pvh(arg);
	else
		told_by_linux(arg);
	if (KEPT->magic != KEPT_MAGIC) {
		KEPT->magic = KEPT_MAGIC;
		KEPT->resets = KEPT->faults = 0;
	}
	say("payload by %s: %s\n", how == 'P' ? "PVH" : "Linux", cmdline);
	run_all(cmdline);
	say("PASS\n");
	power_off();
}
