/* SPDX-License-Identifier: BSD-3-Clause */
/* uri: NBD URIs are cut at their delimiters first and percent-decoded after, as
 * RFC 3986 asks, so that an encoded '/', '?' or '@' never counts as one.
 */
#include "common/uri.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HOST_MAX 255

static const struct scheme {
	const char *prefix;
	bool tls, is_unix;
} schemes[] = {
	{ "nbd://", false, false },
	{ "nbds://", true, false },
	{ "nbd+unix://", false, true },
	{ "nbds+unix://", true, true },
};

/* RFC 3986: schemes are the same in either case. */
static const struct scheme *find_scheme(const char *text)
{
	for (size_t i = 0; i < sizeof(schemes) / sizeof(schemes[0]); i++)
		if (strncasecmp(text, schemes[i].prefix, strlen(schemes[i].prefix)) == 0)
			return &schemes[i];
	return NULL;
}

bool uri_is_nbd(const char *text)
{
	return find_scheme(text) != NULL;
}

void uri_clear(struct uri *uri)
{
	free(uri->socket);
	free(uri->host);
	free(uri->user);
	free(uri->export);
	free(uri->tls_type);
	free(uri->tls_certificates);
	free(uri->tls_psk_file);
	free(uri->tls_hostname);
	*uri = (struct uri){ 0 };
}

static int fail(struct error *err, const char *what)
{
	return error_set(err, -EINVAL, "Invalid NBD URI: %s", what);
}

static int fail_memory(struct error *err)
{
	return error_set(err, -ENOMEM, "NBD URI: out of memory");
}

static bool has_control(const char *text)
{
	for (; *text; text++)
		if ((unsigned char)*text < 0x20 || *text == 0x7f)
			return true;
	return false;
}

/* A host that no program takes for an option, and no URI for something else. */
static int check_host(const char *host, struct error *err)
{
	if (host[0] == '\0')
		return fail(err, "the host is empty");
	if (host[0] == '-')
		return fail(err, "a host does not start with '-'");
	if (strlen(host) > HOST_MAX)
		return fail(err, "the host is too long");
	if (has_control(host) || strpbrk(host, " /?#@[]\\\"<>"))
		return fail(err, "the host has characters that no host name has");
	return 0;
}

static int check_socket(const char *path, struct error *err)
{
	if (path[0] == '\0')
		return fail(err, "the socket's path is empty");
	if (has_control(path))
		return fail(err, "the socket's path has control characters");
	return 0;
}

/* ---- Reading ---- */

static int hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	c |= 0x20;
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Decodes the N bytes at TEXT into a malloc'd string; refuses NUL. */
static int decode(const char *text, size_t n, char **out, struct error *err)
{
	char *buf = malloc(n + 1), *to = buf;

	if (!buf)
		return fail_memory(err);
	for (const char *at = text; at < text + n; at++) {
		if (*at != '%') {
			*to++ = *at;
			continue;
		}
		int high = text + n - at >= 3 ? hex_digit(at[1]) : -1;
		int low = high >= 0 ? hex_digit(at[2]) : -1;
		if (low < 0 || (high | low) == 0) {
			free(buf);
			return fail(err, low < 0 ? "'%' without two hexadecimal digits"
						 : "%00 is not possible here");
		}
		*to++ = high << 4 | low;
		at += 2;
	}
	*to = '\0';
	free(*out);
	*out = buf;
	return 0;
}

static int parse_port(const char *text, size_t n, uint16_t *port, struct error *err)
{
	unsigned value = 0;

	/* RFC 3986 allows "host:" for the default port. */
	if (n == 0)
		return 0;
	for (size_t i = 0; i < n; i++) {
		if (text[i] < '0' || text[i] > '9' || i >= 5)
			return fail(err, "the port is not a number up to 65535");
		value = value * 10 + (text[i] - '0');
	}
	if (value == 0 || value > UINT16_MAX)
		return fail(err, "the port is not between 1 and 65535");
	*port = value;
	return 0;
}

/* "host", "host:port", "[v6]", "[v6]:port"; an empty host is this machine. */
static int parse_host(const char *text, size_t n, struct uri *uri, struct error *err)
{
	const char *end = text + n, *close, *colon;
	bool bracket = n > 0 && text[0] == '[';
	int rc;

	close = bracket ? memchr(text, ']', n) : text;
	if (!close)
		return fail(err, "'[' without ']'");
	colon = memchr(close, ':', end - close);
	if (!colon)
		colon = end;
	if (bracket && colon != close + 1)
		return fail(err, "text between ']' and the port");
	rc = decode(text + bracket, (bracket ? close : colon) - text - bracket, &uri->host, err);
	if (rc < 0)
		return rc;
	if (uri->host[0] == '\0' && !bracket) {
		free(uri->host);
		uri->host = strdup("localhost");
		if (!uri->host)
			return fail_memory(err);
	}
	if (!bracket && strchr(uri->host, ':'))
		return fail(err, "an IPv6 address stands in [ ]");
	if (bracket && !strchr(uri->host, ':'))
		return fail(err, "only an IPv6 address stands in [ ]");
	rc = check_host(uri->host, err);
	if (rc < 0 || colon == end)
		return rc;
	return parse_port(colon + 1, end - colon - 1, &uri->port, err);
}

static int parse_authority(const char *text, size_t n, bool is_unix, struct uri *uri,
			   struct error *err)
{
	const char *at = memchr(text, '@', n);
	int rc;

	if (at) {
		rc = decode(text, at - text, &uri->user, err);
		if (rc < 0)
			return rc;
		n -= at + 1 - text;
		text = at + 1;
	}
	if (!is_unix)
		return parse_host(text, n, uri, err);
	if (n > 0)
		return fail(err, "nbd+unix:// takes no host: write nbd+unix:///EXPORT?socket=PATH");
	return 0;
}

static int parse_socket(const char *text, size_t n, struct uri *uri, struct error *err)
{
	uri->abstract = n >= 3 && memcmp(text, "%00", 3) == 0;
	if (uri->abstract) {
		text += 3;
		n -= 3;
	}
	return decode(text, n, &uri->socket, err);
}

static int parse_verify(const char *text, size_t n, struct uri *uri, struct error *err)
{
	bool yes = (n == 1 && *text == '1') || (n == 4 && memcmp(text, "true", 4) == 0);
	bool no = (n == 1 && *text == '0') || (n == 5 && memcmp(text, "false", 5) == 0);

	if (!yes && !no)
		return fail(err, "tls-verify-peer is 0 or 1");
	uri->tls_no_verify = no;
	return 0;
}

/* One KEY=VALUE of the query, N bytes. */
static int parse_parameter(const char *text, size_t n, bool is_unix, struct uri *uri,
			   struct error *err)
{
	const struct {
		const char *key;
		char **out;
	} strings[] = {
		{ "tls-type", &uri->tls_type },
		{ "tls-certificates", &uri->tls_certificates },
		{ "tls-psk-file", &uri->tls_psk_file },
		{ "tls-hostname", &uri->tls_hostname },
	};
	const char *equals = memchr(text, '=', n);
	size_t key = equals ? (size_t)(equals - text) : n;
	const char *value = text + key + (equals != NULL);
	size_t len = text + n - value;

	if (is_unix && key == 6 && memcmp(text, "socket", key) == 0)
		return parse_socket(value, len, uri, err);
	if (key == 15 && memcmp(text, "tls-verify-peer", key) == 0)
		return parse_verify(value, len, uri, err);
	for (size_t i = 0; i < sizeof(strings) / sizeof(strings[0]); i++)
		if (strlen(strings[i].key) == key && memcmp(text, strings[i].key, key) == 0)
			return decode(value, len, strings[i].out, err);
	return error_set(err, -EINVAL, "Invalid NBD URI: unknown parameter '%.*s'",
			 (int)(key < 64 ? key : 64), text);
}

static int parse_query(const char *text, size_t n, bool is_unix, struct uri *uri,
		       struct error *err)
{
	const char *end = text + n;
	size_t len;
	int rc;

	for (; text < end; text += len + 1) {
		const char *amp = memchr(text, '&', end - text);

		len = (amp ? amp : end) - text;
		if (len == 0)
			continue;
		rc = parse_parameter(text, len, is_unix, uri, err);
		if (rc < 0)
			return rc;
	}
	return 0;
}

static int parse(const char *text, struct uri *uri, struct error *err)
{
	const struct scheme *scheme = find_scheme(text);
	int rc;

	if (!scheme)
		return fail(err, "it starts with nbd://, nbds://, nbd+unix:// or nbds+unix://");
	if (strchr(text, '#'))
		return fail(err, "'#' is written %23");
	uri->tls = scheme->tls;
	uri->port = scheme->is_unix ? 0 : URI_NBD_PORT;
	text += strlen(scheme->prefix);

	size_t authority = strcspn(text, "/?");
	const char *path = text + authority;
	size_t name = strcspn(path, "?");
	const char *query = path + name;

	rc = parse_authority(text, authority, scheme->is_unix, uri, err);
	if (rc < 0)
		return rc;
	rc = decode(path + (name > 0), name - (name > 0), &uri->export, err);
	if (rc < 0)
		return rc;
	if (*query)
		query++;
	rc = parse_query(query, strlen(query), scheme->is_unix, uri, err);
	if (rc < 0 || !scheme->is_unix)
		return rc;
	if (!uri->socket)
		return fail(err, "nbd+unix:// needs ?socket=PATH");
	return check_socket(uri->socket, err);
}

int uri_parse(const char *text, struct uri *out, struct error *err)
{
	int rc;

	*out = (struct uri){ 0 };
	rc = parse(text, out, err);
	if (rc < 0)
		uri_clear(out);
	return rc;
}

/* ---- Writing ---- */

/* Unreserved characters stay; '/' and ':' do too, which may stand in a path and in
 * a query.  Shells leave all of these alone. */
static void put_encoded(FILE *to, const char *text)
{
	static const char plain[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
				    "0123456789-._~/:";

	for (; *text; text++) {
		if (strchr(plain, *text))
			fputc(*text, to);
		else
			fprintf(to, "%%%02X", (unsigned char)*text);
	}
}

static int finish(FILE *to, char **text, char **out, struct error *err)
{
	bool failed = ferror(to);

	if (fclose(to) != 0 || failed) {
		free(*text);
		return fail_memory(err);
	}
	*out = *text;
	return 0;
}

static int build_unix(bool tls, const char *nul, const char *path, const char *export,
		      char **out, struct error *err)
{
	char *text = NULL;
	size_t size;
	FILE *to;
	int rc = check_socket(path, err);

	if (rc < 0)
		return rc;
	to = open_memstream(&text, &size);
	if (!to)
		return fail_memory(err);
	fprintf(to, "%s:///", tls ? "nbds+unix" : "nbd+unix");
	put_encoded(to, export ? export : "");
	fprintf(to, "?socket=%s", nul);
	put_encoded(to, path);
	return finish(to, &text, out, err);
}

int uri_build_unix(bool tls, const char *socket, const char *export, char **out,
		   struct error *err)
{
	return build_unix(tls, "", socket, export, out, err);
}

int uri_build_abstract(bool tls, const char *name, const char *export, char **out,
		       struct error *err)
{
	return build_unix(tls, "%00", name, export, out, err);
}

/* HOST without brackets; an IPv6 zone's '%' is written %25. */
static void put_host(FILE *to, const char *host)
{
	bool v6 = strchr(host, ':') != NULL;

	if (v6)
		fputc('[', to);
	put_encoded(to, host);
	if (v6)
		fputc(']', to);
}

int uri_build_tcp(bool tls, const char *host, uint16_t port, const char *export, char **out,
		  struct error *err)
{
	char bare[HOST_MAX + 1], *text = NULL;
	size_t len = strlen(host), size;
	bool bracket = host[0] == '[' && host[len - 1] == ']';
	FILE *to;
	int rc;

	if (len > HOST_MAX)
		return fail(err, "the host is too long");
	snprintf(bare, sizeof(bare), "%.*s", (int)(len - 2 * bracket), host + bracket);
	rc = check_host(bare, err);
	if (rc < 0)
		return rc;
	to = open_memstream(&text, &size);
	if (!to)
		return fail_memory(err);
	fputs(tls ? "nbds://" : "nbd://", to);
	put_host(to, bare);
	if (port != 0 && port != URI_NBD_PORT)
		fprintf(to, ":%u", port);
	fputc('/', to);
	put_encoded(to, export ? export : "");
	return finish(to, &text, out, err);
}
