// SPDX-License-Identifier: BSD-3-Clause
/* backup-tls: which of a checkpoint's URIs is read, and what we say there who we are.
 *
 * Over a socket of this machine, and without TLS, where the daemon has that.  A daemon that
 * wants TLS is told what the command line has: the URIs it gives name no credentials.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clients/backup-checkpoint.h"

static const char *best(struct json_object *uris)
{
	static const char *const schemes[] = { "nbd+unix:", "nbd:", "nbds+unix:", "nbds:" };
	size_t n = json_object_is_type(uris, json_type_array) ? json_object_array_length(uris) : 0;

	for (unsigned s = 0; s < sizeof(schemes) / sizeof(*schemes); s++)
		for (size_t i = 0; i < n; i++) {
			struct json_object *v = json_object_array_get_idx(uris, i);
			const char *uri = json_object_is_type(v, json_type_string) ? json_object_get_string(v) : "";

			if (!strncmp(uri, schemes[s], strlen(schemes[s])))
				return uri;
		}
	return NULL;
}

static void put_encoded(FILE *to, const char *text)
{
	for (; *text; text++) {
		if ((*text >= '0' && *text <= '9') || (*text >= 'A' && *text <= 'Z') ||
		    (*text >= 'a' && *text <= 'z') || strchr("/._~-", *text))
			putc(*text, to);
		else
			fprintf(to, "%%%02X", (unsigned char)*text);
	}
}

static void put_parameter(FILE *to, char before, const char *key, const char *value)
{
	fprintf(to, "%c%s=", before, key);
	put_encoded(to, value);
}

/* "nbds://USER@HOST/EXPORT?tls-...=PATH" */
static void put_uri(FILE *to, const struct backup_options *o, const char *uri)
{
	const char *rest = strstr(uri, "://");
	char before = strchr(uri, '?') ? '&' : '?';

	if (!rest)
		return;
	rest += strlen("://");
	fwrite(uri, 1, rest - uri, to);
	if (o->tls_username) {
		put_encoded(to, o->tls_username);
		putc('@', to);
	}
	fputs(rest, to);
	if (o->tls_certificates)
		put_parameter(to, before, "tls-certificates", o->tls_certificates);
	else
		put_parameter(to, before, "tls-psk-file", o->tls_psk_file);
}

int backup_pick_uri(const struct backup_options *o, struct json_object *uris, char **out, struct error *err)
{
	const char *uri = best(uris);
	size_t n;
	FILE *to;

	*out = NULL;
	if (!uri)
		return error_set(err, -EPROTO, "%s: the daemon names no URI", o->socket ? o->socket : "merinod");
	if (strncmp(uri, "nbds", 4)) {
		*out = strdup(uri);
	} else if (!o->tls_certificates && !o->tls_psk_file) {
		return error_set(err, -EACCES, "%s: the daemon wants TLS: give --tls-certificates or --tls-psk-file",
				 uri);
	} else {
		to = open_memstream(out, &n);
		if (to) {
			put_uri(to, o, uri);
			if (fclose(to) != 0) {
				free(*out);
				*out = NULL;
			}
		}
	}
	return *out ? 0 : error_errno(err, -ENOMEM, "%s", uri);
}
