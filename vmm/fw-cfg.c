/* SPDX-License-Identifier: BSD-3-Clause */
/* Items for firmware, by ports and by requests in memory: see fw-cfg.h. */
#include "vmm/fw-cfg.h"

#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/checked.h"
#include "vmm/le.h"
#include "vmm/machine.h"

enum { SELECT = 0, DATA = 1, DMA_HIGH = 4, DMA_LOW = 8 };

#define ID_PORTS_AND_DMA 3u
#define DMA_SIGNATURE 0x51454d5520434647ull	/* "QEMU CFG" */
#define DMA_ERROR 0x01u
#define DMA_READ 0x02u
#define DMA_SKIP 0x04u
#define DMA_SELECT 0x08u
#define DMA_WRITE 0x10u

struct item {
	uint16_t key;
	uint32_t len;
	uint8_t *bytes;			/* owned */
	char name[FW_CFG_NAME_MAX + 1];	/* empty: no file */
};

struct fw_cfg {
	struct machine *machine;
	struct fw_cfg_state s;
	struct item item[FW_CFG_ITEMS_MAX];
	unsigned n_items, n_files;
	struct bus_region ports;
};

/* -- items ---------------------------------------------------------------------------- */

static struct item *find(struct fw_cfg *f, uint16_t key)
{
	for (unsigned i = 0; i < f->n_items; i++)
		if (f->item[i].key == key)
			return &f->item[i];
	return NULL;
}

static int add(struct fw_cfg *f, uint16_t key, const char *name, const void *bytes, uint32_t len)
{
	struct item *i = find(f, key);
	uint8_t *copy;

	if (!i && f->n_items == FW_CFG_ITEMS_MAX)
		return -ENOSPC;
	copy = malloc(len ? len : 1);
	if (!copy)
		return -ENOMEM;
	if (len)
		memcpy(copy, bytes, len);
	if (i)
		free(i->bytes);
	else
		i = &f->item[f->n_items++];
	*i = (struct item){ .key = key, .len = len, .bytes = copy };
	strncpy(i->name, name, FW_CFG_NAME_MAX);
	return 0;
}

/* Count, then 64 bytes for each file: length, key, two of nothing, name; big-endian. */
static int directory_write(struct fw_cfg *f)
{
	uint8_t d[4 + 64 * FW_CFG_ITEMS_MAX] = { 0 }, *p = d + 4;
	uint32_t n = htobe32(f->n_files);

	memcpy(d, &n, 4);
	for (unsigned i = 0; i < f->n_items; i++) {
		const struct item *t = &f->item[i];
		uint32_t len = htobe32(t->len);
		uint16_t key = htobe16(t->key);

		if (!t->name[0])
			continue;
		memcpy(p, &len, 4);
		memcpy(p + 4, &key, 2);
		memcpy(p + 8, t->name, sizeof(t->name));
		p += 64;
	}
	return add(f, FW_CFG_DIRECTORY, "", d, (uint32_t)(p - d));
}

int fw_cfg_add(struct machine *m, uint16_t key, const void *bytes, uint32_t len)
{
	return add(m->fw_cfg, key, "", bytes, len);
}

int fw_cfg_add_file(struct machine *m, const char *name, const void *bytes, uint32_t len)
{
	struct fw_cfg *f = m->fw_cfg;
	int rc = add(f, (uint16_t)(FW_CFG_FILES + f->n_files), name, bytes, len);

	if (rc)
		return rc;
	f->n_files++;
	return directory_write(f);
}

/* -- what the guest reads ---------------------------------------------------------------- */

static void select_item(struct fw_cfg *f, uint16_t key)
{
	f->s.key = key;
	f->s.at = 0;
}

/* LEN bytes from where the guest is, zeroes behind the end; TO may be NULL: they are skipped. */
static void take(struct fw_cfg *f, uint8_t *to, uint32_t len)
{
	const struct item *i = find(f, f->s.key);
	uint32_t have = i && f->s.at < i->len ? i->len - f->s.at : 0, n = min_u64(have, len);

	if (to && n)
		memcpy(to, i->bytes + f->s.at, n);
	if (to)
		memset(to + n, 0, len - n);
	f->s.at += n;
}

/* CONTROL and what it works on; false: it is not done. */
static bool serve(struct fw_cfg *f, uint32_t control, uint32_t len, uint64_t addr)
{
	uint8_t *to = NULL;

	if (control & DMA_SELECT)
		select_item(f, (uint16_t)(control >> 16));
	if (control & DMA_READ) {
		to = len && len <= FW_CFG_DMA_MAX ? memory_at(&f->machine->memory, addr, len) : NULL;
		if (len && !to)
			return false;
	} else if (control & DMA_WRITE) {
		return false;
	} else if (!(control & DMA_SKIP)) {
		return true;
	}
	take(f, to, len);
	return true;
}

static void dma(struct fw_cfg *f)
{
	uint8_t *request = memory_at(&f->machine->memory, f->s.dma, 16);
	uint32_t control, len, done;
	uint64_t addr;

	f->s.dma = 0;
	if (!request)
		return;
	memcpy(&control, request, 4);
	memcpy(&len, request + 4, 4);
	memcpy(&addr, request + 8, 8);
	done = htobe32(serve(f, be32toh(control), be32toh(len), be64toh(addr)) ? 0 : DMA_ERROR);
	memcpy(request, &done, 4);
}

static uint64_t port_read(void *arg, uint64_t off, unsigned size)
{
	struct fw_cfg *f = arg;
	uint8_t byte;

	if (off == DATA && size == 1) {
		take(f, &byte, 1);
		return byte;
	}
	if (off == DMA_HIGH && size == 4)
		return htobe32((uint32_t)(DMA_SIGNATURE >> 32));
	if (off == DMA_LOW && size == 4)
		return htobe32((uint32_t)DMA_SIGNATURE);
	return 0;
}

static void port_write(void *arg, uint64_t off, unsigned size, uint64_t value)
{
	struct fw_cfg *f = arg;

	if (off == SELECT && size == 2)
		select_item(f, (uint16_t)value);
	else if (off == DMA_HIGH && size == 4)
		f->s.dma = (uint64_t)be32toh((uint32_t)value) << 32;
	else if (off == DMA_LOW && size == 4) {
		f->s.dma |= be32toh((uint32_t)value);
		dma(f);
	}
}

/* -- made and ended -------------------------------------------------------------------- */

static void items_free(struct fw_cfg *f)
{
	while (f->n_items)
		free(f->item[--f->n_items].bytes);
	f->n_files = 0;
}

void fw_cfg_reset(struct machine *m)
{
	struct fw_cfg *f = m->fw_cfg;
	uint8_t id[4];

	items_free(f);
	f->s = (struct fw_cfg_state){ .version = 1 };
	put_le32(id, ID_PORTS_AND_DMA);
	/* Four bytes each: where there is no memory for them, firmware sees that nothing is here. */
	add(f, FW_CFG_SIGNATURE, "", "QEMU", 4);
	add(f, FW_CFG_ID, "", id, 4);
}

void fw_cfg_save(struct machine *m, struct fw_cfg_state *s)
{
	*s = m->fw_cfg->s;
}

int fw_cfg_load(struct machine *m, const struct fw_cfg_state *s, struct error *err)
{
	const struct item *i = find(m->fw_cfg, s->key);

	if (s->version != 1 || s->at > (i ? i->len : 0))
		return error_set(err, -EINVAL, "fw_cfg: a state that there is not");
	m->fw_cfg->s = *s;
	return 0;
}

int fw_cfg_start(struct machine *m, struct error *err)
{
	struct fw_cfg *f = calloc(1, sizeof(*f));
	int rc;

	if (!f)
		return error_set(err, -ENOMEM, "Out of memory");
	m->fw_cfg = f;
	f->machine = m;
	f->ports = (struct bus_region){
		.base = FW_CFG_PORT, .len = FW_CFG_PORTS, .read = port_read, .write = port_write, .arg = f,
	};
	fw_cfg_reset(m);
	rc = bus_add(&m->pio, &f->ports);
	return rc ? error_errno(err, rc, "ports of fw_cfg") : 0;
}

void fw_cfg_end(struct machine *m)
{
	if (!m->fw_cfg)
		return;
	bus_remove(&m->pio, &m->fw_cfg->ports);
	items_free(m->fw_cfg);
	free(m->fw_cfg);
	m->fw_cfg = NULL;
}
