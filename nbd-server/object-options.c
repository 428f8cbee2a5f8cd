/* SPDX-License-Identifier: BSD-3-Clause */
/* object-options: what object-add's union has beside qom-type and id: one row for each
 * option, whichever class has it, as in blockdev-options.c.  The classes check what
 * they are given.
 */
#include "nbd-server/commands.h"

#include <stdlib.h>
#include <string.h>

#include "common/objects.h"

static const char *const endpoints[] = { "client", "server", NULL };
static const char *const policies[] = { "deny", "allow", NULL };
static const char *const match_formats[] = { "exact", "glob", NULL };
static const char *const secret_formats[] = { "raw", "base64", NULL };

static const struct qmp_arg rule_members[] = {
	{ "match", QMP_STR, true, "the name" },
	{ "policy", QMP_STR, true, "what it may", .values = policies },
	{ "format", QMP_STR, false, "how it is compared", .values = match_formats },
	{ NULL },
};

static const struct qmp_arg item_rule = { "null", QMP_OBJECT, .members = rule_members };

#define LIMIT(prefix, name) \
	{ prefix name, QMP_INT, false, "per second" }, \
	{ prefix name "-max", QMP_INT, false, "per second, in a burst" }, \
	{ prefix name "-max-length", QMP_INT, false, "seconds of a burst" }

#define LIMITS(prefix) \
	LIMIT(prefix, "bps-total"), LIMIT(prefix, "bps-read"), LIMIT(prefix, "bps-write"), \
	LIMIT(prefix, "iops-total"), LIMIT(prefix, "iops-read"), LIMIT(prefix, "iops-write"), \
	{ prefix "iops-size", QMP_INT, false, "bytes that count as one operation" }

static const struct qmp_arg limits[] = { LIMITS(""), { NULL } };

/* By name. */
static const struct qmp_arg rows[] = {
	{ "data", QMP_STR, false, "the secret" },
	{ "dir", QMP_STR, false, "where the files are" },
	{ "endpoint", QMP_STR, false, "which side of a connection", .values = endpoints },
	{ "file", QMP_STR, false, "where the secret is" },
	{ "filename", QMP_STR, true, "the list" },
	{ "format", QMP_STR, false, "of the secret", .values = secret_formats },
	{ "identity", QMP_STR, true, "who may" },
	{ "iv", QMP_STR, false, "initialisation vector, base64" },
	{ "keyid", QMP_STR, false, "the secret that decrypts this one" },
	{ "limits", QMP_OBJECT, false, "of the group", .members = limits },
	{ "passwordid", QMP_STR, false, "the secret that opens the key" },
	{ "policy", QMP_STR, false, "what those may that no rule names", .values = policies },
	{ "priority", QMP_STR, false, "gnutls's priority string" },
	{ "refresh", QMP_BOOL, false, "the list is read again when it changes" },
	{ "rules", QMP_ARRAY, false, "who may", .item = &item_rule },
	{ "sanity-check", QMP_BOOL, false, "certificates are looked at when they are loaded" },
	{ "username", QMP_STR, false, "whose key it is" },
	{ "verify-peer", QMP_BOOL, false, "the other side must have a certificate" },
	LIMITS("x-"),
	{ NULL },
};

/* Made once, when all classes are registered; it lasts as long as the process. */
const struct qmp_case *object_cases(void)
{
	static const struct qmp_case none = { NULL };
	static struct qmp_case *cases;
	size_t n = 0;

	if (cases)
		return cases;
	for (const struct object_class *c = object_class_first(); c; c = c->next)
		n++;
	cases = calloc(n + 1, sizeof(*cases));
	n = 0;
	for (const struct object_class *c = object_class_first(); cases && c; c = c->next)
		cases[n++] = (struct qmp_case){ c->name, qmp_rows(rows, c->options) };
	return cases ? cases : &none;
}
