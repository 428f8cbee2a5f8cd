/* SPDX-License-Identifier: BSD-3-Clause */
/* The 8250's registers: see serial.h.
 *
 * National Semiconductor's PC16550D data sheet.  The transmitter is done at once unless the
 * line is full; there is no modem, its lines are those of a peer that is there.
 */
#include "vmm/serial.h"

#include <errno.h>
#include <stdlib.h>

#include "vmm/line.h"
#include "vmm/machine.h"

#define FIFO SERIAL_FIFO

#define IER_RX 0x01u
#define IER_TX 0x02u
#define IER_ALL 0x0fu
#define IIR_NONE 0x01u
#define IIR_TX 0x02u
#define IIR_RX 0x04u
#define IIR_FIFO 0xc0u
#define FCR_ENABLE 0x01u
#define LCR_DLAB 0x80u
#define MCR_OUT2 0x08u
#define MCR_LOOP 0x10u
#define MCR_ALL 0x1fu
#define LSR_RX 0x01u
#define LSR_TX 0x60u			/* holding register and shift register are empty */
#define MSR_READY 0xb0u			/* carrier, data set ready, clear to send */

struct serial {
	struct machine *machine;
	struct serial_state s;
	struct bus_region region;
	struct line *line;		/* NULL: what is sent is gone */
	bool raised;
};

static uint8_t interrupt_id(const struct serial *u)
{
	if (u->s.ier & IER_RX && u->s.rx_n)
		return IIR_RX;
	if (u->s.ier & IER_TX && u->s.tx_pending)
		return IIR_TX;
	return IIR_NONE;
}

static void raise_line(struct serial *u, bool raised)
{
	u->raised = raised;
	machine_irq(u->machine, SERIAL_IRQ, raised);
}

static bool wants_interrupt(const struct serial *u)
{
	return interrupt_id(u) != IIR_NONE && u->s.mcr & MCR_OUT2 && !(u->s.mcr & MCR_LOOP);
}

static void update(struct serial *u)
{
	if (wants_interrupt(u) != u->raised)
		raise_line(u, !u->raised);
}

static bool is_full(const struct serial *u)
{
	return u->line && line_full(u->line);
}

/* -- data ---------------------------------------------------------------------------- */

static void receive(struct serial *u, uint8_t byte)
{
	if (u->s.rx_n == FIFO)
		return;
	u->s.rx[(u->s.rx_at + u->s.rx_n++) % FIFO] = byte;
}

static uint8_t data_read(struct serial *u)
{
	uint8_t byte;

	if (!u->s.rx_n)
		return 0;
	byte = u->s.rx[u->s.rx_at];
	u->s.rx_at = (u->s.rx_at + 1) % FIFO;
	if (!--u->s.rx_n && u->line)
		line_taken(u->line);
	return byte;
}

static void data_write(struct serial *u, uint8_t byte)
{
	if (u->s.mcr & MCR_LOOP)
		receive(u, byte);
	else if (u->line)
		line_put(u->line, byte);
	u->s.tx_pending = !is_full(u);
}

/* -- the line's calls ------------------------------------------------------------------ */

static unsigned line_room(void *arg)
{
	struct serial *u = arg;

	return u->s.mcr & MCR_LOOP ? 0 : FIFO - u->s.rx_n;
}

static void line_give(void *arg, const uint8_t *bytes, unsigned n)
{
	struct serial *u = arg;

	while (n--)
		receive(u, *bytes++);
	update(u);
}

static void line_space(void *arg)
{
	struct serial *u = arg;

	u->s.tx_pending = true;
	update(u);
}

/* -- registers ----------------------------------------------------------------------- */

static uint8_t modem_status(const struct serial *u)
{
	uint8_t m = u->s.mcr;

	if (!(m & MCR_LOOP))
		return MSR_READY;
	/* The outputs come back: RTS to CTS, DTR to DSR, OUT1 to RI, OUT2 to DCD. */
	return (uint8_t)((m & 2) << 3 | (m & 1) << 5 | (m & 4) << 4 | (m & 8) << 4);
}

static uint8_t interrupt_read(struct serial *u)
{
	uint8_t id = interrupt_id(u);

	if (id == IIR_TX)
		u->s.tx_pending = false;
	return id | (u->s.fcr & FCR_ENABLE ? IIR_FIFO : 0);
}

static uint8_t register_read(struct serial *u, unsigned reg)
{
	switch (reg) {
	case 0:
		return u->s.lcr & LCR_DLAB ? u->s.divisor[0] : data_read(u);
	case 1:
		return u->s.lcr & LCR_DLAB ? u->s.divisor[1] : u->s.ier;
	case 2:
		return interrupt_read(u);
	case 3:
		return u->s.lcr;
	case 4:
		return u->s.mcr;
	case 5:
		return (is_full(u) ? 0 : LSR_TX) | (u->s.rx_n ? LSR_RX : 0);
	case 6:
		return modem_status(u);
	default:
		return u->s.scratch;
	}
}

static void register_write(struct serial *u, unsigned reg, uint8_t value)
{
	switch (reg) {
	case 0:
		if (u->s.lcr & LCR_DLAB)
			u->s.divisor[0] = value;
		else
			data_write(u, value);
		break;
	case 1:
		if (u->s.lcr & LCR_DLAB) {
			u->s.divisor[1] = value;
		} else {
			u->s.tx_pending |= value & ~u->s.ier & IER_TX;
			u->s.ier = value & IER_ALL;
		}
		break;
	case 2:
		u->s.fcr = value & FCR_ENABLE;
		if (value & 2)
			u->s.rx_n = 0;
		if (value & 2 && u->line)
			line_taken(u->line);
		break;
	case 3:
		u->s.lcr = value;
		break;
	case 4:
		u->s.mcr = value & MCR_ALL;
		if (u->line)
			line_taken(u->line);
		break;
	case 7:
		u->s.scratch = value;
		break;
	}
}

static uint64_t serial_read(void *arg, uint64_t off, unsigned size)
{
	struct serial *u = arg;
	uint64_t value = 0;

	for (unsigned i = 0; i < size; i++)
		value |= (uint64_t)register_read(u, (unsigned)off + i) << (8 * i);
	update(u);
	return value;
}

static void serial_write(void *arg, uint64_t off, unsigned size, uint64_t value)
{
	struct serial *u = arg;

	for (unsigned i = 0; i < size; i++)
		register_write(u, (unsigned)off + i, (uint8_t)(value >> (8 * i)));
	update(u);
}

/* -- all of it ------------------------------------------------------------------------ */

void serial_reset(struct machine *m)
{
	if (!m->serial)
		return;
	m->serial->s = (struct serial_state){ .version = 1, .divisor = { 12, 0 } };
	update(m->serial);
}

void serial_save(struct machine *m, struct serial_state *s)
{
	*s = m->serial->s;
}

int serial_load(struct machine *m, const struct serial_state *s, struct error *err)
{
	struct serial *u = m->serial;

	if (s->version != 1 || s->ier & ~IER_ALL || s->mcr & ~MCR_ALL || s->fcr & ~FCR_ENABLE ||
	    s->tx_pending > 1 || s->rx_at >= FIFO || s->rx_n > FIFO)
		return error_set(err, -EINVAL, "serial line: a state that there is not");
	u->s = *s;
	/* Who waits for the line to drain finds that it has: this one is another one. */
	u->s.tx_pending |= !is_full(u);
	raise_line(u, wants_interrupt(u));
	return 0;
}

int serial_start(struct machine *m, const char *where, struct error *err)
{
	struct serial *u = calloc(1, sizeof(*u));
	struct line_user user = { line_room, line_give, line_space, u };

	if (!u)
		return error_set(err, -ENOMEM, "Out of memory");
	m->serial = u;
	u->machine = m;
	u->region = (struct bus_region){
		.base = SERIAL_BASE, .len = 8, .read = serial_read, .write = serial_write, .arg = u,
	};
	serial_reset(m);
	if (bus_add(&m->pio, &u->region))
		return error_set(err, -EEXIST, "ports of the serial line");
	return line_open(m, where, &user, &u->line, err);
}

void serial_end(struct machine *m)
{
	if (!m->serial)
		return;
	line_close(m->serial->line);
	bus_remove(&m->pio, &m->serial->region);
	free(m->serial);
	m->serial = NULL;
}
