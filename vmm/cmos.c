// SPDX-License-Identifier: BSD-3-Clause
/* The clock and its memory: see cmos.h.
 *
 * A reader looks at "update in progress" (register A) first, then at one register after the
 * other.  So that it sees one instant, the registers change only when A or the seconds are
 * read.
 */
#include "vmm/cmos.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <time.h>

#include "common/checked.h"
#include "vmm/machine.h"

enum {
	SECONDS = 0, MINUTES = 2, HOURS = 4, WEEKDAY = 6, DAY, MONTH, YEAR,
	STATUS_A, STATUS_B, STATUS_C, STATUS_D,
	BASE_LOW = 0x15, ABOVE_1M_LOW = 0x17, ABOVE_1M_AGAIN = 0x30, CENTURY = 0x32,
	ABOVE_16M = 0x34, ABOVE_4G = 0x5b, CPUS = 0x5f,
};

#define A_32KHZ 0x26u
#define B_24_HOURS 0x02u
#define B_PERIODIC 0x40u
#define C_PERIODIC 0xc0u		/* and that there is an interrupt at all */
#define PERIOD_NS 976563u
#define D_BATTERY 0x80u

#define YEAR_9999 253402300799ll	/* its last second */

struct cmos {
	struct cmos_state s;
	struct machine *machine;
	struct loop_timer timer;	/* main loop's */
	uint64_t last;			/* when it rang, main loop's */
	bool told;			/* the main loop knows, or will hear, that it shall ring */
	struct bus_region ports;
};

static uint8_t bcd(int n)
{
	return (uint8_t)(n / 10 % 10 << 4 | n % 10);
}

static uint8_t clock_read(const struct cmos *c, unsigned i)
{
	time_t now = (time_t)c->s.shown;
	struct tm t;

	gmtime_r(&now, &t);
	switch (i) {
	case SECONDS:
		return bcd(t.tm_sec);
	case MINUTES:
		return bcd(t.tm_min);
	case HOURS:
		return bcd(t.tm_hour);
	case WEEKDAY:
		return bcd(t.tm_wday + 1);
	case DAY:
		return bcd(t.tm_mday);
	case MONTH:
		return bcd(t.tm_mon + 1);
	case YEAR:
		return bcd(t.tm_year % 100);
	default:
		return bcd((t.tm_year + 1900) / 100);
	}
}

/* -- the periodic interrupt: machine->lock is held, but for what the main loop calls ------- */

static void ring(struct loop_timer *t)
{
	struct cmos *c = (struct cmos *)((char *)t - offsetof(struct cmos, timer));

	c->last = t->deadline;
	pthread_mutex_lock(&c->machine->lock);
	c->told = false;
	if (c->s.periodic) {
		c->s.pending = true;
		machine_irq(c->machine, CMOS_IRQ, true);
	}
	pthread_mutex_unlock(&c->machine->lock);
}

/* A period after the last one.  When the guest saw that too late, at once: a wait is a number
 * of interrupts, and becomes not much longer than it shall. */
static void arm(struct loop_msg *m)
{
	struct cmos *c = ((struct machine *)((char *)m - offsetof(struct machine, periodic)))->cmos;
	uint64_t now = loop_now();

	loop_timer_set(&c->timer, now - c->last > PERIOD_NS ? now : c->last + PERIOD_NS, ring);
}

static void periodic_next(struct cmos *c)
{
	if (!c->s.periodic || c->s.pending || c->told)
		return;
	c->told = true;
	c->machine->periodic.fn = arm;
	loop_post(c->machine->main, &c->machine->periodic);
}

static void periodic_seen(struct cmos *c)
{
	c->s.pending = false;
	machine_irq(c->machine, CMOS_IRQ, false);
	periodic_next(c);
}

static uint8_t status_c_read(struct cmos *c)
{
	uint8_t value = c->s.pending ? C_PERIODIC : 0;

	if (c->s.pending)
		periodic_seen(c);
	return value;
}

static void status_b_write(struct cmos *c, uint8_t value)
{
	c->s.periodic = (value & B_PERIODIC) != 0;
	if (!c->s.periodic && c->s.pending)
		periodic_seen(c);
	periodic_next(c);
}

/* -- registers --------------------------------------------------------------------------- */

static uint8_t byte_read(struct cmos *c, unsigned i)
{
	if (i == STATUS_A || i == SECONDS)
		c->s.shown = time(NULL);
	switch (i) {
	case SECONDS: case MINUTES: case HOURS: case WEEKDAY: case DAY: case MONTH: case YEAR:
	case CENTURY:
		return clock_read(c, i);
	case STATUS_A:
		return A_32KHZ;
	case STATUS_B:
		return B_24_HOURS | (c->s.periodic ? B_PERIODIC : 0);
	case STATUS_C:
		return status_c_read(c);
	case STATUS_D:
		return D_BATTERY;
	default:
		return c->s.byte[i];
	}
}

static uint64_t cmos_read(void *arg, uint64_t off, unsigned size)
{
	struct cmos *c = arg;

	return off == 1 && size == 1 ? byte_read(c, c->s.index) : 0xff;
}

static void cmos_write(void *arg, uint64_t off, unsigned size, uint64_t value)
{
	struct cmos *c = arg;

	if (off == 0)
		c->s.index = value & (CMOS_BYTES - 1);	/* the highest bit masks NMIs on PCs */
	else if (c->s.index == STATUS_B)
		status_b_write(c, (uint8_t)value);
	else
		c->s.byte[c->s.index] = (uint8_t)value;
}

static void put16(struct cmos *c, unsigned at, uint64_t value)
{
	uint64_t most = min_u64(value, 0xffff);

	c->s.byte[at] = (uint8_t)most;
	c->s.byte[at + 1] = (uint8_t)(most >> 8);
}

static uint64_t above(uint64_t bytes, uint64_t start)
{
	return bytes > start ? bytes - start : 0;
}

void cmos_reset(struct machine *m)
{
	struct cmos *c = m->cmos;
	bool pending = c->s.pending;
	uint64_t low = m->memory.low, high = min_u64(m->memory.high >> 16, 0xffffff);

	c->s = (struct cmos_state){ .version = 1, .shown = time(NULL) };
	if (pending)
		machine_irq(m, CMOS_IRQ, false);
	put16(c, BASE_LOW, 640);
	put16(c, ABOVE_1M_LOW, above(low, 1 << 20) >> 10);
	put16(c, ABOVE_1M_AGAIN, above(low, 1 << 20) >> 10);
	put16(c, ABOVE_16M, above(low, 16 << 20) >> 16);
	put16(c, ABOVE_4G, high & 0xffff);
	c->s.byte[ABOVE_4G + 2] = (uint8_t)(high >> 16);
	c->s.byte[CPUS] = (uint8_t)(m->config->vcpus - 1);
}

void cmos_save(struct machine *m, struct cmos_state *s)
{
	*s = m->cmos->s;
}

int cmos_load(struct machine *m, const struct cmos_state *s, struct error *err)
{
	if (s->version != 1 || s->index >= CMOS_BYTES || s->periodic > 1 || s->pending > 1 ||
	    s->shown < 0 || s->shown > YEAR_9999)
		return error_set(err, -EINVAL, "clock: a state that there is not");
	m->cmos->s = *s;
	machine_irq(m, CMOS_IRQ, s->pending);
	periodic_next(m->cmos);
	return 0;
}

int cmos_start(struct machine *m, struct error *err)
{
	struct cmos *c = calloc(1, sizeof(*c));
	int rc;

	if (!c)
		return error_set(err, -ENOMEM, "Out of memory");
	m->cmos = c;
	c->machine = m;
	c->ports = (struct bus_region){
		.base = CMOS_PORT, .len = 2, .read = cmos_read, .write = cmos_write, .arg = c,
	};
	cmos_reset(m);
	rc = bus_add(&m->pio, &c->ports);
	return rc ? error_errno(err, rc, "ports of the clock") : 0;
}

void cmos_end(struct machine *m)
{
	if (!m->cmos)
		return;
	bus_remove(&m->pio, &m->cmos->ports);
	free(m->cmos);
	m->cmos = NULL;
}
