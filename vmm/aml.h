/* SPDX-License-Identifier: BSD-3-Clause */
/* aml: writes ACPI's byte code (ACPI 6.4, chapter 20), as much of it as our tables need.
 *
 * Everything goes to the end of one buffer.  What has a length is opened and closed; names
 * have four characters.  A buffer that is full stays full, and its owner sees it at the end.
 */
#ifndef MERINO_VMM_AML_H
#define MERINO_VMM_AML_H

#include <stdbool.h>
#include <stdint.h>

struct aml {
	uint8_t *at;
	uint32_t len, size;
	bool full;
};

void aml_bytes(struct aml *a, const void *p, uint32_t n);
void aml_byte(struct aml *a, uint8_t v);

/* Each returns what aml_close() wants. */
uint32_t aml_scope(struct aml *a, const char *name);	/* "\\_SB_" or a name of four */
uint32_t aml_device(struct aml *a, const char *name);
uint32_t aml_package(struct aml *a, uint8_t elements);	/* a value */
uint32_t aml_template(struct aml *a);			/* a value: resources */
void aml_close(struct aml *a, uint32_t opened);
void aml_template_close(struct aml *a, uint32_t opened);

void aml_name(struct aml *a, const char *name);		/* a value follows */
void aml_int(struct aml *a, uint64_t v);		/* values */
void aml_text(struct aml *a, const char *text);
void aml_eisa(struct aml *a, const char *id);		/* "PNP0A08" */

/* In a template.  What a device decodes for itself, or, as a bridge, for those behind it. */
void aml_ports(struct aml *a, uint16_t base, uint8_t len);
void aml_irq(struct aml *a, uint8_t line);		/* edge */
void aml_memory(struct aml *a, uint32_t base, uint32_t len);
void aml_bridge_buses(struct aml *a, uint16_t first, uint16_t last);
void aml_bridge_ports(struct aml *a, uint16_t first, uint16_t last);
void aml_bridge_memory(struct aml *a, uint32_t first, uint32_t last);

#endif
