// SPDX-License-Identifier: BSD-3-Clause
/* cli: options as nbdkit and libnbd's programs take them.
 *
 * Numbers that count bytes may be written as sizes ("256k"): cli_number reads
 * both through size_parse.
 */
#include "clients/cli.h"

#include <assert.h>
#include <string.h>

#include "common/error.h"
#include "common/log.h"
#include "common/size.h"

void cli_init(struct cli *c, const struct cli_option *table)
{
	char *s = c->shorts;

	*c = (struct cli){ 0 };
	for (unsigned i = 0; table[i].name; i++) {
		const struct cli_option *o = &table[i];

		assert(i < CLI_OPTIONS);
		c->longs[i] = (struct option){
			.name = o->name,
			.has_arg = !o->value ? no_argument :
				   o->value[0] == '[' ? optional_argument : required_argument,
			.val = o->id,
		};
		if (o->id >= CLI_LONG)
			continue;
		*s++ = o->id;
		/* "-p3" would be read as "-p -3": only the long form takes an optional value. */
		if (c->longs[i].has_arg == required_argument)
			*s++ = ':';
	}
}

int cli_next(struct cli *c, int argc, char **argv)
{
	return getopt_long(argc, argv, c->shorts, c->longs, NULL);
}

void cli_help(FILE *f, const struct cli_option *table)
{
	for (const struct cli_option *o = table; o->name; o++) {
		char left[64], dash[4] = "  ";

		if (o->id < CLI_LONG)
			snprintf(dash, sizeof(dash), "-%c", o->id);
		snprintf(left, sizeof(left), "%s%s --%s%s%s", dash, o->id < CLI_LONG ? "," : " ", o->name,
			 o->value && o->value[0] != '[' ? "=" : "", o->value ? o->value : "");
		fprintf(f, "  %-30s %s\n", left, o->help);
	}
}

void cli_version(void)
{
	printf("merino %s\n", MERINO_VERSION);
}

int64_t cli_number(const char *option, const char *text, int64_t min, int64_t max)
{
	struct error err = ERROR_INIT;
	uint64_t n;

	if (size_parse(text, &n, &err) < 0) {
		log_error("--%s: %s", option, err.text);
		return -1;
	}
	if (n < (uint64_t)min || n > (uint64_t)max) {
		log_error("--%s=%s: must be from %lld to %lld", option, text, (long long)min,
			  (long long)max);
		return -1;
	}
	return n;
}
