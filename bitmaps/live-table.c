// SPDX-License-Identifier: BSD-3-Clause
/* live-table: the table of bitmaps in the live file, as bytes (doc/formats/bitmaps-live.md).
 *
 * Bitmaps are in the order of node->bitmaps, the newest first.  One whose bits are not in the
 * file is in the table all the same, as inconsistent: so what the table does not name is
 * gone, and not lost.
 *
 * The reader believes nothing: each number is compared with its bounds before it is used.
 */
#include "bitmaps/live-int.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "common/bytes.h"

uint32_t live_crc(const void *p, size_t len)
{
	return (uint32_t)crc32_z(0, p, len);
}

static uint64_t entry_len(const struct bitmap *b)
{
	return sizeof(struct live_entry_head) + align_up(strlen(b->name), 8);
}

/* Bytes of the table, without what does not fit into MAX. */
uint64_t live_table_len(const struct node *n, bool *fits, uint32_t max)
{
	uint64_t len = sizeof(struct live_table_head);
	uint32_t count = 0;

	*fits = true;
	for (const struct bitmap *b = n->bitmaps; b; b = b->next) {
		if (!b->persistent)
			continue;
		if (len + entry_len(b) > max || count == LIVE_ENTRIES_MAX) {
			*fits = false;
			continue;
		}
		len += entry_len(b);
		count++;
	}
	return len;
}

static uint64_t put_entry(uint8_t *p, const struct bitmap *b)
{
	struct live_entry_head e = {
		.size = b->size, .granularity_bits = (uint8_t)b->granularity_bits, .kind = LIVE_DIRTY,
		.name_len = (uint16_t)strlen(b->name), .flags = (b->enabled ? LIVE_RECORDING : 0u) | (b->shrunk ? LIVE_SHRUNK : 0u),
	};

	if (b->live && !b->inconsistent) {
		e.off = b->live_off;
		e.room = b->bits_len;
	} else {
		e.flags = LIVE_INCONSISTENT;
	}
	memset(p, 0, entry_len(b));
	memcpy(p, &e, sizeof(e));
	memcpy(p + sizeof(e), b->name, e.name_len);
	return entry_len(b);
}

void live_table_write(struct live *l, uint8_t *p, uint64_t seq)
{
	struct live_table_head h = l->closing;
	uint64_t at = sizeof(h);

	h.seq = seq;
	h.disk_size = l->node->size;
	h.entries = 0;
	for (const struct bitmap *b = l->node->bitmaps; b; b = b->next) {
		if (!b->persistent)
			continue;
		if (at + entry_len(b) > l->table_bytes || h.entries == LIVE_ENTRIES_MAX) {
			h.flags |= LIVE_INCOMPLETE;
			continue;
		}
		at += put_entry(p + at, b);
		h.entries++;
	}
	h.bytes = (uint32_t)at;
	h.crc = 0;
	memcpy(p, &h, sizeof(h));
	h.crc = live_crc(p, at);
	memcpy(p + offsetof(struct live_table_head, crc), &h.crc, sizeof(h.crc));
}

bool live_table_valid(const uint8_t *p, uint32_t max, struct live_table_head *h)
{
	static const uint32_t zero = 0;
	size_t at = offsetof(struct live_table_head, crc);
	uLong crc;

	memcpy(h, p, sizeof(*h));
	if (!h->seq || h->bytes < sizeof(*h) || h->bytes > max || h->entries > LIVE_ENTRIES_MAX)
		return false;
	crc = crc32_z(0, p, at);
	crc = crc32_z(crc, (const uint8_t *)&zero, sizeof(zero));
	crc = crc32_z(crc, p + at + sizeof(zero), h->bytes - at - sizeof(zero));
	return h->crc == (uint32_t)crc;
}

static const char *entry_problem(const struct live_entry *e, uint64_t first, uint64_t file_size)
{
	const struct live_entry_head *h = &e->h;
	uint64_t need;

	if (!utf8_valid(e->name, h->name_len) || strlen(e->name) != h->name_len)
		return "a name is not valid";
	if (h->granularity_bits < 9 || h->granularity_bits > 31 || h->size > INT64_MAX)
		return "a bitmap's size is not valid";
	need = bitmap_data_bytes(h->size, h->granularity_bits);
	if (need > BITMAP_BYTES_MAX)
		return "a bitmap is too large";
	if (h->flags & LIVE_INCONSISTENT)
		return NULL;
	if (h->off % LIVE_PAGE || h->room % LIVE_PAGE || h->off < first || h->room < need ||
	    !checked_range(h->off, h->room, file_size))
		return "an area is outside the file";
	return NULL;
}

static bool is_there(const struct live_entry *v, uint32_t n, const char *name)
{
	for (uint32_t i = 0; i < n; i++)
		if (!strcmp(v[i].name, name))
			return true;
	return false;
}

int live_table_parse(const uint8_t *p, const struct live_table_head *h, uint64_t first,
		     uint64_t file_size, struct live_entry **out, uint32_t *n, const char **why)
{
	struct live_entry *v = calloc(h->entries + 1u, sizeof(*v));
	uint64_t at = sizeof(*h);

	*n = 0;
	*why = "out of memory";
	if (!v)
		return -ENOMEM;
	*why = NULL;
	for (uint32_t i = 0; i < h->entries && !*why; i++) {
		struct live_entry *e = &v[*n];

		*why = "its table ends too early";
		if (h->bytes - at < sizeof(e->h))
			break;
		memcpy(&e->h, p + at, sizeof(e->h));
		at += sizeof(e->h);
		if (!e->h.name_len || e->h.name_len > BITMAP_NAME_MAX ||
		    h->bytes - at < align_up(e->h.name_len, 8))
			break;
		memcpy(e->name, p + at, e->h.name_len);
		e->name[e->h.name_len] = 0;
		at += align_up(e->h.name_len, 8);
		*why = NULL;
		if (e->h.kind != LIVE_DIRTY)
			continue;
		*why = is_there(v, *n, e->name) ? "a name is there twice" : entry_problem(e, first, file_size);
		++*n;
	}
	if (!*why) {
		*out = v;
		return 0;
	}
	free(v);
	*n = 0;
	return -EINVAL;
}
