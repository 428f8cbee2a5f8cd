// SPDX-License-Identifier: BSD-3-Clause
/* net: reads --net and opens the carrier.  See net.h. */
#include "vmm/net.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/keyval.h"
#include "common/options.h"

static const struct net_class *const classes[] = { &net_user, &net_tap };
static const char *const names[] = { "user", "tap", NULL };

/* A unicast address in six pairs of digits; nothing else. */
static int parse_mac(const char *text, uint8_t mac[6], struct error *err)
{
	unsigned b[6];
	int n = 0;

	if (strspn(text, "0123456789abcdefABCDEF:") != 17 || strlen(text) != 17 ||
	    sscanf(text, "%2x:%2x:%2x:%2x:%2x:%2x%n", &b[0], &b[1], &b[2], &b[3], &b[4], &b[5],
		   &n) != 6 || n != 17)
		return error_set(err, -EINVAL, "Parameter 'mac' expects an address like 52:54:00:12:34:56");
	if (b[0] & 1)
		return error_set(err, -EINVAL, "mac '%s' is not the address of one card", text);
	for (int i = 0; i < 6; i++)
		mac[i] = (uint8_t)b[i];
	return 0;
}

static int take_id(struct json_object *opts, struct net_options *o, struct error *err)
{
	char *id = NULL;
	int rc = opts_str(opts, "id", &id, err);

	if (!rc && id && (!id_wellformed(id) || strlen(id) >= sizeof(o->id)))
		rc = error_set(err, -EINVAL, "Parameter 'id' expects an identifier");
	if (!rc && id)
		strcpy(o->id, id);
	free(id);
	return rc;
}

static int take_mac(struct json_object *opts, struct net_options *o, struct error *err)
{
	char *mac = NULL;
	int rc = opts_str(opts, "mac", &mac, err);

	if (!rc && mac)
		rc = parse_mac(mac, o->mac, err);
	free(mac);
	return rc;
}

static int take_common(struct json_object *opts, const struct net_class *c, struct net_options *o,
		       struct error *err)
{
	uint64_t mtu = 0;
	int rc = take_id(opts, o, err);

	if (!rc)
		rc = take_mac(opts, o, err);
	if (!rc)
		rc = opts_u64(opts, "mtu", &mtu, err);
	if (!rc && mtu && (mtu < NET_MTU_MIN || mtu > c->mtu_max))
		rc = error_set(err, -EINVAL, "mtu must be from %u to %u", NET_MTU_MIN, c->mtu_max);
	o->mtu = (uint16_t)mtu;
	return rc;
}

static int open_carrier(struct json_object *opts, struct net_options *o, struct net **out,
			struct error *err)
{
	int type = 0, rc = opts_require(opts, "type", err);

	if (!rc)
		rc = opts_enum(opts, "type", names, &type, err);
	if (!rc)
		rc = take_common(opts, classes[type], o, err);
	return rc ? rc : classes[type]->open(opts, out, err);
}

/* keyval keeps the last of two; of these, none may be lost. */
static int check_repeated(const char *text, struct error *err)
{
	const char *first = strstr(text, "hostfwd=");

	return first && strstr(first + 1, "hostfwd=") ?
		error_set(err, -EINVAL, "several rules are hostfwd.0=…,hostfwd.1=…") : 0;
}

int net_open(const char *text, unsigned index, struct net_options *o, struct net **out,
	     struct error *err)
{
	struct json_object *opts;
	int rc = check_repeated(text, err);

	*out = NULL;
	*o = (struct net_options){ .mac = { 0x52, 0x54, 0, 0x12, 0x34, (uint8_t)(0x56 + index) } };
	snprintf(o->id, sizeof(o->id), "net%u", index);
	opts = rc ? NULL : keyval_parse(text, "type", err);
	if (!opts)
		return -EINVAL;
	rc = open_carrier(opts, o, out, err);
	json_object_put(opts);
	if (rc)
		error_prefix(err, "--net %s: ", text);
	return rc;
}

struct net_look net_look(const char *text)
{
	struct error ignored = ERROR_INIT;
	struct json_object *opts = keyval_parse(text, "type", &ignored);
	struct net_look l = { .fd = -1 };
	uint64_t fd = UINT64_MAX;
	char *type = NULL;

	if (opts && !opts_str(opts, "type", &type, &ignored) && type) {
		l.user = !strcmp(type, net_user.name);
		l.tap = !strcmp(type, net_tap.name);
	}
	if (l.tap && !opts_u64(opts, "fd", &fd, &ignored) && fd <= INT32_MAX)
		l.fd = (int)fd;
	free(type);
	json_object_put(opts);
	return l;
}

void net_close(struct net *n)
{
	if (n)
		n->class->close(n);
}
