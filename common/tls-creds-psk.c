/* SPDX-License-Identifier: BSD-3-Clause */
/* tls-creds-psk: keys that both sides have, by user name.
 *
 *	DIR/keys.psk = { user ':' key in hex '\n' }
 *
 * as psktool(1) writes it; a user that begins with '#' is in hex itself, which is how
 * GnuTLS writes names that are no text; "#" and a space begin a comment.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/loop.h"
#include "common/options.h"
#include "common/tls-creds.h"

#define PSK_FILE "keys.psk"
#define PSK_USER "qemu"			/* QEMU's default */

const struct psk_key *tls_creds_psk(const struct tls_creds *c, const void *user, size_t len)
{
	for (size_t i = 0; i < c->n_keys; i++) {
		if (c->keys[i].user_len == len && !memcmp(c->keys[i].user, user, len))
			return &c->keys[i];
	}
	return NULL;
}

/* -- the file --------------------------------------------------------------- */

/* LEN hex digits at TEXT into *OUT, malloc'd with a zero byte behind. */
static int from_hex(const char *text, size_t len, uint8_t **out, size_t *out_len)
{
	gnutls_datum_t in = { (unsigned char *)text, (unsigned)len };
	size_t n = len / 2;

	if (!len || len % 2)
		return -EINVAL;
	*out = malloc(n + 1);
	if (!*out)
		return -ENOMEM;
	if (gnutls_hex_decode(&in, *out, &n) < 0 || n != len / 2)
		return -EINVAL;
	(*out)[n] = 0;
	*out_len = n;
	return 0;
}

/* USER:KEY, LEN bytes.  What was allocated is the caller's to free, whatever the result. */
static int parse_line(const char *line, size_t len, struct psk_key *k)
{
	const char *colon = memchr(line, ':', len);
	size_t user = colon ? (size_t)(colon - line) : 0;
	int rc = 0;

	if (!user)
		return -EINVAL;
	if (line[0] == '#') {
		rc = from_hex(line + 1, user - 1, &k->user, &k->user_len);
	} else {
		k->user = (uint8_t *)strndup(line, user);
		k->user_len = user;
		rc = k->user ? 0 : -ENOMEM;
	}
	return rc ? rc : from_hex(colon + 1, len - user - 1, &k->key, &k->key_len);
}

static bool is_comment(const char *line, size_t len)
{
	return !len || (line[0] == '#' && (len == 1 || line[1] == ' '));
}

static int parse(struct tls_creds *c, const char *text, struct error *err)
{
	unsigned number = 0;

	while (*text) {
		size_t len = strcspn(text, "\n"), next = len + (text[len] == '\n');
		struct psk_key *v;
		int rc = 0;

		number++;
		if (len && text[len - 1] == '\r')
			len--;
		if (!is_comment(text, len)) {
			v = reallocarray(c->keys, c->n_keys + 1, sizeof(*v));
			if (!v)
				return error_set(err, -ENOMEM, "Out of memory");
			c->keys = v;
			v[c->n_keys] = (struct psk_key){ 0 };
			rc = parse_line(text, len, &v[c->n_keys++]);
		}
		if (rc)
			return error_set(err, rc, "%s/%s: line %u is not 'user:key in hex'", c->dir,
					 PSK_FILE, number);
		text += next;
	}
	return c->n_keys ? 0 : error_set(err, -EINVAL, "%s/%s: there are no keys", c->dir, PSK_FILE);
}

/* -- the class -------------------------------------------------------------- */

static int load(struct tls_creds *c, struct error *err)
{
	gnutls_datum_t d = { 0 };
	int rc = tls_creds_read(c, PSK_FILE, true, false, &d, err);

	if (!rc)
		rc = parse(c, (char *)d.data, err);
	tls_creds_unread(&d);
	if (!rc && c->endpoint == TLS_CLIENT &&
	    !tls_creds_psk(c, c->username, strlen(c->username)))
		rc = error_set(err, -ENOENT, "Username %s not found in PSK file %s/%s", c->username, c->dir,
			       PSK_FILE);
	if (rc)
		return rc;
	if (c->endpoint == TLS_CLIENT)
		return tls_creds_priorities(c, err);
	if (gnutls_psk_allocate_server_credentials(&c->psk) < 0)
		return error_set(err, -ENOMEM, "Out of memory");
	gnutls_psk_set_server_credentials_function2(c->psk, tls_find_key);
	return tls_creds_priorities(c, err);
}

static int psk_create(const char *id, struct json_object *opts, void **data, struct error *err)
{
	struct tls_creds *c = calloc(1, sizeof(*c));
	int rc;

	*data = c;
	if (!c)
		return error_set(err, -ENOMEM, "Out of memory");
	c->kind = TLS_PSK;
	rc = tls_creds_take(c, opts, err);
	if (!rc)
		rc = opts_str(opts, "username", &c->username, err);
	if (!rc)
		rc = opts_end(opts, err);
	if (!rc && c->endpoint == TLS_SERVER && c->username)
		rc = error_set(err, -EINVAL, "username should not be set when endpoint=server");
	if (!rc && !c->username && !(c->username = strdup(PSK_USER)))
		rc = error_set(err, -ENOMEM, "Out of memory");
	return rc ? rc : load(c, err);
}

struct object_class tls_creds_psk_class = {
	.name = "tls-creds-psk",
	.options = (const char *const[]){
		"dir", "endpoint", "username", "priority", NULL
	},
	.create = psk_create,
	.destroy = tls_creds_destroy,
};
