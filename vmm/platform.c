/* SPDX-License-Identifier: BSD-3-Clause */
/* ACPI registers, power button, reset: see platform.h.
 *
 * The machine is in ACPI mode from the start: there is no SMI to turn it on.
 */
#include "vmm/platform.h"

#include <errno.h>
#include <stdlib.h>

#include "vmm/machine.h"

#define TIMER_HZ 3579545u
#define STATUS_BUTTON 0x100u
#define ENABLE_ALL 0x0721u
#define CONTROL_SCI 0x1u
#define CONTROL_SLEEP 0x2000u
#define CONTROL_TYPE(v) ((v) >> 10 & 7)

struct platform {
	struct machine *machine;
	struct platform_state s;
	struct bus_region registers, reset;
};

static void sci_update(struct platform *p)
{
	machine_irq(p->machine, PLATFORM_SCI, p->s.status & p->s.enable);
}

static uint32_t timer_now(const struct platform *p)
{
	uint64_t ns = loop_now() + p->s.timer;

	return (uint32_t)((unsigned __int128)ns * TIMER_HZ / 1000000000u) & 0xffffff;
}

/* The registers as 16-bit words. */
static uint16_t word_read(struct platform *p, uint64_t off)
{
	switch (off) {
	case 0:
		return p->s.status;
	case 2:
		return p->s.enable;
	case 4:
		return p->s.control;
	case 8:
		return (uint16_t)timer_now(p);
	case 10:
		return (uint16_t)(timer_now(p) >> 16);
	default:
		return 0;
	}
}

static uint64_t registers_read(void *arg, uint64_t off, unsigned size)
{
	struct platform *p = arg;

	if (off == 8 && size == 4)
		return timer_now(p);
	if (size == 1)
		return word_read(p, off & ~1ull) >> (8 * (off & 1)) & 0xff;
	if (size == 2 && !(off & 1))
		return word_read(p, off);
	if (size == 4 && !(off & 3))
		return word_read(p, off) | (uint32_t)word_read(p, off + 2) << 16;
	return 0;
}

static void control_write(struct platform *p, uint16_t value)
{
	p->s.control = (value & ~CONTROL_SLEEP) | CONTROL_SCI;
	if (value & CONTROL_SLEEP && CONTROL_TYPE(value) == PLATFORM_SLEEP_S5)
		machine_tell(p->machine, MACHINE_SHUTDOWN);
}

static void word_write(struct platform *p, uint64_t off, uint16_t value)
{
	switch (off) {
	case 0:
		p->s.status &= ~value;		/* ones clear */
		sci_update(p);
		break;
	case 2:
		p->s.enable = value & ENABLE_ALL;
		sci_update(p);
		break;
	case 4:
		control_write(p, value);
		break;
	}
}

static void registers_write(void *arg, uint64_t off, unsigned size, uint64_t value)
{
	struct platform *p = arg;

	if (size == 1) {
		/* Half of a word; the other half of the status register is not cleared. */
		uint16_t other = off < 2 ? 0 : word_read(p, off & ~1ull);
		unsigned shift = 8 * (off & 1);

		word_write(p, off & ~1ull, (uint16_t)((other & ~(0xffu << shift)) | (value & 0xff) << shift));
	} else if (size == 2 && !(off & 1)) {
		word_write(p, off, (uint16_t)value);
	} else if (size == 4 && !(off & 3)) {
		word_write(p, off, (uint16_t)value);
		word_write(p, off + 2, (uint16_t)(value >> 16));
	}
}

static void reset_write(void *arg, uint64_t off, unsigned size, uint64_t value)
{
	struct platform *p = arg;

	if ((value & 0xff) == PLATFORM_RESET_VALUE)
		machine_tell(p->machine, MACHINE_RESET);
}

void platform_button(struct machine *m)
{
	m->platform->s.status |= STATUS_BUTTON;
	sci_update(m->platform);
}

void platform_reset(struct machine *m)
{
	m->platform->s = (struct platform_state){ .version = 1, .control = CONTROL_SCI };
	sci_update(m->platform);
}

void platform_save(struct machine *m, struct platform_state *s)
{
	*s = m->platform->s;
	s->timer += loop_now();
}

int platform_load(struct machine *m, const struct platform_state *s, struct error *err)
{
	if (s->version != 1 || s->status & ~STATUS_BUTTON || s->enable & ~ENABLE_ALL ||
	    !(s->control & CONTROL_SCI) || s->control & CONTROL_SLEEP)
		return error_set(err, -EINVAL, "ACPI registers: a state that there is not");
	m->platform->s = *s;
	m->platform->s.timer -= loop_now();	/* goes on where it was; wraps as it likes */
	sci_update(m->platform);
	return 0;
}

int platform_start(struct machine *m, struct error *err)
{
	struct platform *p = calloc(1, sizeof(*p));
	int rc;

	if (!p)
		return error_set(err, -ENOMEM, "Out of memory");
	m->platform = p;
	p->machine = m;
	p->registers = (struct bus_region){
		.base = PLATFORM_PM1_EVENT, .len = 12,
		.read = registers_read, .write = registers_write, .arg = p,
	};
	p->reset = (struct bus_region){
		.base = PLATFORM_RESET, .len = 1, .write = reset_write, .arg = p,
	};
	platform_reset(m);
	rc = bus_add(&m->pio, &p->registers);
	if (!rc)
		rc = bus_add(&m->pio, &p->reset);
	return rc ? error_errno(err, rc, "ports of the platform") : 0;
}

void platform_end(struct machine *m)
{
	if (!m->platform)
		return;
	bus_remove(&m->pio, &m->platform->registers);
	bus_remove(&m->pio, &m->platform->reset);
	free(m->platform);
	m->platform = NULL;
}
