/* SPDX-License-Identifier: BSD-3-Clause */
/* checkpoint-label: the name of an epoch's bitmap, which is all that is kept of a
 * checkpoint beside the bits.  It comes from an image, so from a stranger: what does
 * not parse to the last byte is some other bitmap.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backup/checkpoint.h"
#include "common/bytes.h"

static const char prefix[] = "merino:";
static const char *const states[] = { "pending", "ready", "active" };

#define N_STATES (sizeof(states) / sizeof(states[0]))

const char *checkpoint_state_name(enum checkpoint_state s)
{
	return states[s];
}

int checkpoint_name_check(const char *name, struct error *err)
{
	size_t len = strlen(name);

	if (!len)
		return error_set(err, -EINVAL, "Checkpoint name cannot be empty");
	if (len > CHECKPOINT_NAME_MAX)
		return error_set(err, -EINVAL, "Checkpoint name is longer than %d bytes",
				 CHECKPOINT_NAME_MAX);
	if (!utf8_valid(name, len))
		return error_set(err, -EINVAL, "Checkpoint name is not valid UTF-8");
	for (const char *p = name; *p; p++) {
		if ((unsigned char)*p < ' ' || *p == 0x7f)
			return error_set(err, -EINVAL, "Checkpoint name has control characters");
	}
	return 0;
}

/* The bytes of WORD, and then END. */
static bool take_word(const char **p, const char *word, char end)
{
	size_t len = strlen(word);

	if (strncmp(*p, word, len) || (*p)[len] != end)
		return false;
	*p += len + 1;
	return true;
}

/* A number as we write it: no sign, no leading zero, no space. */
static bool take_number(const char **p, uint64_t *out, char end)
{
	uint64_t v = 0;
	unsigned digits = 0;

	for (; **p >= '0' && **p <= '9'; ++*p, digits++) {
		if ((digits && !v) || __builtin_mul_overflow(v, 10u, &v) ||
		    __builtin_add_overflow(v, (uint64_t)(**p - '0'), &v))
			return false;
	}
	if (!digits || **p != end)
		return false;
	++*p;
	*out = v;
	return true;
}

static bool take_hex(const char **p, uint64_t *out, char end)
{
	uint64_t v = 0;

	for (unsigned i = 0; i < 16; i++) {
		char c = *(*p)++;

		if (c >= '0' && c <= '9')
			v = v << 4 | (uint64_t)(c - '0');
		else if (c >= 'a' && c <= 'f')
			v = v << 4 | (uint64_t)(c - 'a' + 10);
		else
			return false;
	}
	*out = v;
	return *(*p)++ == end;
}

static bool take_state(const char **p, enum checkpoint_state *out)
{
	for (unsigned i = 0; i < N_STATES; i++) {
		if (take_word(p, states[i], ':')) {
			*out = i;
			return true;
		}
	}
	return false;
}

bool label_parse(const char *bitmap, struct label *l)
{
	const char *p = bitmap;
	uint64_t disks;

	if (strncmp(p, prefix, sizeof(prefix) - 1))
		return false;
	p += sizeof(prefix) - 1;
	if (!take_state(&p, &l->state) || !take_number(&p, &l->first, '-') ||
	    !take_number(&p, &l->last, ':') || !take_number(&p, &l->time, ':') ||
	    !take_hex(&p, &l->group, '-') || !take_number(&p, &disks, ':'))
		return false;
	if (!l->first || l->last < l->first || l->last == UINT64_MAX || !disks ||
	    disks > CHECKPOINT_DISKS_MAX || checkpoint_name_check(p, NULL))
		return false;
	l->disks = (unsigned)disks;
	strcpy(l->name, p);
	return true;
}

void label_format(const struct label *l, char *buf)
{
	snprintf(buf, LABEL_SIZE, "%s%s:%" PRIu64 "-%" PRIu64 ":%" PRIu64 ":%016" PRIx64 "-%u:%s",
		 prefix, states[l->state], l->first, l->last, l->time, l->group, l->disks,
		 l->name);
}

int checkpoint_guard(const char *bitmap, struct error *err)
{
	struct label l;

	if (!label_parse(bitmap, &l))
		return 0;
	return error_set(err, -EPERM, "Bitmap '%s' belongs to checkpoint '%s'", bitmap, l.name);
}
