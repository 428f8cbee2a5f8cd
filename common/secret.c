/* SPDX-License-Identifier: BSD-3-Clause */
/* secret: from `data` or `file`, as it is (raw) or in base64; with `keyid` it was
 * encrypted by AES-256-CBC with PKCS#7 padding, under another secret of 32 bytes and
 * the base64 `iv`, which is how libvirt passes them.
 *
 * A file is read once.  The bytes are overwritten before they are freed.
 */
#include "common/secret.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <gnutls/crypto.h>
#include <gnutls/gnutls.h>

#include "common/bytes.h"
#include "common/options.h"
#include "common/read-small.h"

#define SECRET_MAX (1u << 20)		/* bytes of a file */

enum { KEY_BYTES = 32, BLOCK_BYTES = 16 };

static const char *const formats[] = { "raw", "base64", NULL };

struct secret_options {
	char *data, *file, *keyid, *iv;
	int format;			/* index into formats */
};

static void secret_destroy(void *data)
{
	struct secret *s = data;

	if (!s)
		return;
	read_small_free(s->bytes, s->len);
	free(s);
}

/* -- decoding --------------------------------------------------------------- */

/* *BYTES is replaced by what it means in base64. */
static int decode_base64(uint8_t **bytes, size_t *len, struct error *err)
{
	static const char valid[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=\n";
	gnutls_datum_t in = { *bytes, (unsigned)*len }, out = { NULL, 0 };
	uint8_t *copy;

	if (strspn((char *)*bytes, valid) != *len)
		return error_set(err, -EINVAL, "Base64 data contains invalid characters");
	if (*len && gnutls_base64_decode2(&in, &out) < 0)
		return error_set(err, -EINVAL, "Base64 data is not well-formed");
	copy = malloc((size_t)out.size + 1);
	if (copy) {
		if (out.size)
			memcpy(copy, out.data, out.size);
		copy[out.size] = 0;
		read_small_free(*bytes, *len);
		*bytes = copy;
		*len = out.size;
	}
	if (out.data)
		explicit_bzero(out.data, out.size);
	gnutls_free(out.data);
	return copy ? 0 : error_set(err, -ENOMEM, "Out of memory");
}

static int decrypt_in_place(struct secret *s, const uint8_t *key, uint8_t *iv, struct error *err)
{
	gnutls_datum_t k = { (uint8_t *)key, KEY_BYTES }, v = { iv, BLOCK_BYTES };
	gnutls_cipher_hd_t cipher;
	unsigned pad;
	int rc;

	if (!s->len || s->len % BLOCK_BYTES)
		return error_set(err, -EINVAL, "Length %zu must be a multiple of block size %d",
				 s->len, BLOCK_BYTES);
	rc = gnutls_cipher_init(&cipher, GNUTLS_CIPHER_AES_256_CBC, &k, &v);
	if (!rc) {
		rc = gnutls_cipher_decrypt(cipher, s->bytes, s->len);
		gnutls_cipher_deinit(cipher);
	}
	if (rc)
		return error_set(err, -EIO, "Unable to decrypt: %s", gnutls_strerror(rc));
	pad = s->bytes[s->len - 1];
	if (!pad || pad > BLOCK_BYTES)
		return error_set(err, -EINVAL,
				 "Incorrect number of padding bytes (%u) found on decrypted data",
				 pad);
	s->len -= pad;
	s->bytes[s->len] = 0;
	return 0;
}

static int decrypt(struct secret *s, const struct secret_options *o, struct error *err)
{
	const struct secret *key;
	struct object *ref = NULL;
	size_t iv_len = o->iv ? strlen(o->iv) : 0;
	uint8_t *iv = NULL;
	int rc = 0;

	key = secret_get(o->keyid, &ref, err);
	if (!key)
		return -ENOENT;
	if (key->len != KEY_BYTES)
		rc = error_set(err, -EINVAL, "Key should be %d bytes in length", KEY_BYTES);
	else if (!o->iv)
		rc = error_set(err, -EINVAL, "IV is required to decrypt secret");
	else if (!(iv = (uint8_t *)strdup(o->iv)))
		rc = error_set(err, -ENOMEM, "Out of memory");
	if (!rc)
		rc = decode_base64(&iv, &iv_len, err);
	if (!rc && iv_len != BLOCK_BYTES)
		rc = error_set(err, -EINVAL, "IV should be %d bytes in length not %zu", BLOCK_BYTES,
			       iv_len);
	if (!rc)
		rc = decrypt_in_place(s, key->bytes, iv, err);
	free(iv);
	object_put(ref);
	return rc;
}

/* -- the class -------------------------------------------------------------- */

static int secret_read(struct secret *s, const struct secret_options *o, struct error *err)
{
	int rc;

	if (o->file && o->data)
		return error_set(err, -EINVAL, "'file' and 'data' are mutually exclusive");
	if (o->file) {
		rc = read_small(o->file, SECRET_MAX, &s->bytes, &s->len, NULL);
		return rc ? error_errno(err, rc, "Unable to read %s", o->file) : 0;
	}
	if (!o->data)
		return error_set(err, -EINVAL, "Either 'file' or 'data' must be provided");
	s->len = strlen(o->data);
	s->bytes = (uint8_t *)strdup(o->data);
	return s->bytes ? 0 : error_set(err, -ENOMEM, "Out of memory");
}

static int secret_make(const struct secret_options *o, struct secret *s, struct error *err)
{
	int rc = secret_read(s, o, err);

	if (!rc && o->format == 1)
		rc = decode_base64(&s->bytes, &s->len, err);
	if (!rc && o->keyid)
		rc = decrypt(s, o, err);
	return rc;
}

static int secret_take(struct json_object *opts, struct secret_options *o, struct error *err)
{
	int rc = opts_str(opts, "data", &o->data, err);

	if (!rc)
		rc = opts_str(opts, "file", &o->file, err);
	if (!rc)
		rc = opts_enum(opts, "format", formats, &o->format, err);
	if (!rc)
		rc = opts_str(opts, "keyid", &o->keyid, err);
	if (!rc)
		rc = opts_str(opts, "iv", &o->iv, err);
	return rc ? rc : opts_end(opts, err);
}

static int secret_create(const char *id, struct json_object *opts, void **data, struct error *err)
{
	struct secret *s = calloc(1, sizeof(*s));
	struct secret_options o = { 0 };
	int rc = s ? secret_take(opts, &o, err) : error_set(err, -ENOMEM, "Out of memory");

	if (!rc)
		rc = secret_make(&o, s, err);
	if (o.data)
		explicit_bzero(o.data, strlen(o.data));
	free(o.data);
	free(o.file);
	free(o.keyid);
	free(o.iv);
	*data = s;
	return rc;
}

struct object_class secret_class = {
	.name = "secret",
	.options = (const char *const[]){
		"data", "file", "format", "keyid", "iv", NULL
	},
	.create = secret_create,
	.destroy = secret_destroy,
};

const struct secret *secret_get(const char *id, struct object **ref, struct error *err)
{
	const struct secret *s = object_get(id, NULL, ref, NULL);

	if (!s) {
		error_set(err, -ENOENT, "No secret with id '%s'", id);
		return NULL;
	}
	if (object_class_of(*ref) != &secret_class) {
		object_put(*ref);
		*ref = NULL;
		error_set(err, -EINVAL, "Object with id '%s' is not a secret", id);
		return NULL;
	}
	return s;
}

const char *secret_get_text(const char *id, struct object **ref, struct error *err)
{
	const struct secret *s = secret_get(id, ref, err);

	if (!s)
		return NULL;
	if (memchr(s->bytes, 0, s->len) || !utf8_valid((char *)s->bytes, s->len)) {
		object_put(*ref);
		*ref = NULL;
		error_set(err, -EINVAL, "Data from secret %s is not valid UTF-8", id);
		return NULL;
	}
	return (const char *)s->bytes;
}
