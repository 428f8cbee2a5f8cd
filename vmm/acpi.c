/* SPDX-License-Identifier: BSD-3-Clause */
/* The ACPI tables: see acpi.h.  Numbers of sections are ACPI 6.4's. */
#include "vmm/acpi.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "vmm/aml.h"
#include "vmm/fw-cfg.h"
#include "vmm/le.h"
#include "vmm/machine.h"
#include "vmm/platform.h"
#include "vmm/serial.h"

#define HEADER 36u
#define LOCAL_APIC 0xfee00000u
#define IOAPIC 0xfec00000u

struct builder {
	struct acpi *a;
	uint64_t base;
};

static uint8_t checksum(const uint8_t *p, uint32_t n)
{
	uint8_t sum = 0;

	while (n--)
		sum += *p++;
	return (uint8_t)-sum;
}

/* -- a table ---------------------------------------------------------------------------- */

static uint8_t *begin(struct builder *b, const char *signature, uint8_t revision, uint32_t len)
{
	struct acpi *a = b->a;
	uint8_t *p;

	a->len = (a->len + 63) & ~63u;		/* 64: the FACS asks for it */
	assert(a->n_tables < ACPI_TABLES_MAX && len <= ACPI_BYTES_MAX - a->len);
	a->table[a->n_tables].at = a->len;
	p = a->bytes + a->len;
	memcpy(p, signature, 4);
	p[8] = revision;
	memcpy(p + 10, "MERINOMERINOVM", 14);	/* maker, table */
	put_le32(p + 24, 1);
	memcpy(p + 28, "MRNO", 4);
	put_le32(p + 32, 1);
	return p;
}

/* LEN bytes long; its offset. */
static uint32_t finish(struct builder *b, uint32_t len)
{
	struct acpi_table *t = &b->a->table[b->a->n_tables++];
	uint8_t *p = b->a->bytes + t->at;

	t->len = len;
	b->a->len = t->at + len;
	put_le32(p + 4, len);
	p[9] = 0;
	p[9] = checksum(p, len);
	return t->at;
}

/* At P: the address of what lies at offset TO. */
static void pointer(struct builder *b, uint8_t *p, unsigned size, uint32_t to)
{
	struct acpi *a = b->a;

	assert(a->n_pointers < ACPI_POINTERS_MAX);
	a->pointer[a->n_pointers++] = (struct acpi_pointer){ (uint32_t)(p - a->bytes), size };
	if (size == 8)
		put_le64(p, b->base + to);
	else
		put_le32(p, (uint32_t)(b->base + to));
}

/* -- DSDT: what no standard says where to find ------------------------------------------- */

static void pci_root(struct aml *d)
{
	uint32_t device = aml_device(d, "PCI0"), crs;

	aml_name(d, "_HID");
	aml_eisa(d, "PNP0A08");
	aml_name(d, "_CID");
	aml_eisa(d, "PNP0A03");
	aml_name(d, "_SEG");
	aml_int(d, 0);
	aml_name(d, "_BBN");
	aml_int(d, 0);
	aml_name(d, "_UID");
	aml_int(d, 0);
	aml_name(d, "_CRS");
	crs = aml_template(d);
	aml_bridge_buses(d, 0, 0);
	aml_ports(d, 0xcf8, 8);
	aml_bridge_ports(d, 0, 0xcf7);
	aml_bridge_ports(d, 0xd00, 0xffff);
	aml_bridge_memory(d, PCI_BAR_BASE, PCI_ECAM_BASE - 1);
	aml_bridge_memory(d, PCI_ECAM_BASE + PCI_ECAM_SIZE, PCI_BAR_END - 1);
	aml_template_close(d, crs);
	aml_close(d, device);
}

/* What nobody else may be given. */
static void board(struct aml *d)
{
	uint32_t device = aml_device(d, "BRD0"), crs;

	aml_name(d, "_HID");
	aml_eisa(d, "PNP0C02");
	aml_name(d, "_CRS");
	crs = aml_template(d);
	aml_memory(d, PCI_ECAM_BASE, PCI_ECAM_SIZE);
	aml_ports(d, PLATFORM_PM1_EVENT, 12);
	aml_ports(d, FW_CFG_PORT, FW_CFG_PORTS);
	aml_template_close(d, crs);
	aml_close(d, device);
}

static void serial_line(struct aml *d)
{
	uint32_t device = aml_device(d, "COM1"), crs;

	aml_name(d, "_HID");
	aml_eisa(d, "PNP0501");
	aml_name(d, "_UID");
	aml_int(d, 1);
	aml_name(d, "_CRS");
	crs = aml_template(d);
	aml_ports(d, SERIAL_BASE, 8);
	aml_irq(d, SERIAL_IRQ);
	aml_template_close(d, crs);
	aml_close(d, device);
}

static void processors(struct aml *d, unsigned vcpus)
{
	for (unsigned i = 0; i < vcpus; i++) {
		char text[8];
		uint32_t device;

		snprintf(text, sizeof(text), "C%03X", i & 0xfff);
		device = aml_device(d, text);
		aml_name(d, "_HID");
		aml_text(d, "ACPI0007");
		aml_name(d, "_UID");
		aml_int(d, i);
		aml_close(d, device);
	}
}

static uint32_t dsdt(struct builder *b, unsigned vcpus)
{
	uint8_t *p = begin(b, "DSDT", 2, HEADER);
	struct aml d = { .at = p, .len = HEADER, .size = ACPI_BYTES_MAX - 4096 - b->a->len };
	uint32_t scope = aml_scope(&d, "\\_SB_"), package;

	pci_root(&d);
	board(&d);
	serial_line(&d);
	processors(&d, vcpus);
	aml_close(&d, scope);
	aml_name(&d, "\\_S5_");
	package = aml_package(&d, 4);
	for (unsigned i = 0; i < 4; i++)
		aml_int(&d, i < 2 ? PLATFORM_SLEEP_S5 : 0);
	aml_close(&d, package);
	assert(!d.full);
	return finish(b, d.len);
}

/* -- FACS, FADT: fixed registers ------------------------------------------------------------ */

static uint32_t facs(struct builder *b)
{
	struct acpi *a = b->a;
	uint32_t at = a->len = (a->len + 63) & ~63u;

	memcpy(a->bytes + at, "FACS", 4);
	put_le32(a->bytes + at + 4, 64);
	a->bytes[at + 32] = 2;
	a->len += 64;				/* it has no checksum */
	return at;
}

/* A generic address (5.2.3.2): a port of so many bits. */
static void put_port(uint8_t *p, uint16_t port, uint8_t bits)
{
	p[0] = 1;
	p[1] = bits;
	p[3] = bits == 8 ? 1 : bits == 16 ? 2 : 3;
	put_le64(p + 4, port);
}

#define FADT_BYTES 276u
#define FADT_WBINVD (1u << 0)
#define FADT_C1 (1u << 2)
#define FADT_NO_SLEEP_BUTTON (1u << 5)
#define FADT_RESET (1u << 10)
#define ARCH_LEGACY (1u << 0)
#define ARCH_NO_VGA (1u << 2)

static uint32_t fadt(struct builder *b, uint32_t facs_at, uint32_t dsdt_at)
{
	uint8_t *p = begin(b, "FACP", 6, FADT_BYTES);

	pointer(b, p + 36, 4, facs_at);
	pointer(b, p + 40, 4, dsdt_at);
	p[45] = 4;				/* a server */
	put_le16(p + 46, PLATFORM_SCI);
	put_le32(p + 56, PLATFORM_PM1_EVENT);
	put_le32(p + 64, PLATFORM_PM1_CONTROL);
	put_le32(p + 76, PLATFORM_PM_TIMER);
	p[88] = 4;
	p[89] = 2;
	p[91] = 4;
	put_le16(p + 96, 0xfff);		/* no C2, no C3 */
	put_le16(p + 98, 0xfff);
	p[108] = 0x32;				/* the century, in the CMOS */
	put_le16(p + 109, ARCH_LEGACY | ARCH_NO_VGA);
	put_le32(p + 112, FADT_WBINVD | FADT_C1 | FADT_NO_SLEEP_BUTTON | FADT_RESET);
	put_port(p + 116, PLATFORM_RESET, 8);
	p[128] = PLATFORM_RESET_VALUE;
	pointer(b, p + 140, 8, dsdt_at);
	put_port(p + 148, PLATFORM_PM1_EVENT, 32);
	put_port(p + 172, PLATFORM_PM1_CONTROL, 16);
	put_port(p + 208, PLATFORM_PM_TIMER, 32);
	return finish(b, FADT_BYTES);
}

/* -- MADT (5.2.12), MCFG (PCI firmware specification), XSDT ---------------------------------- */

static uint8_t *madt_line(uint8_t *p, uint8_t line, uint32_t gsi, uint16_t flags)
{
	p[0] = 2;
	p[1] = 10;
	p[3] = line;
	put_le32(p + 4, gsi);
	put_le16(p + 8, flags);
	return p + 10;
}

static uint32_t madt(struct builder *b, unsigned vcpus)
{
	uint32_t len = HEADER + 8 + 8 * vcpus + 12 + 10 + 10 + 6;
	uint8_t *table = begin(b, "APIC", 5, len), *p = table + HEADER;

	put_le32(p, LOCAL_APIC);
	put_le32(p + 4, 1);			/* there are PICs, too */
	p += 8;
	for (unsigned i = 0; i < vcpus; i++, p += 8) {
		p[1] = 8;
		p[2] = (uint8_t)i;		/* _UID */
		p[3] = (uint8_t)i;		/* APIC id */
		p[4] = 1;
	}
	p[0] = 1;
	p[1] = 12;
	put_le32(p + 4, IOAPIC);
	p = madt_line(p + 12, 0, 2, 0);
	p = madt_line(p, PLATFORM_SCI, PLATFORM_SCI, 0xd);	/* level, active high */
	p[0] = 4;				/* NMI: LINT1 of every CPU */
	p[1] = 6;
	p[2] = 0xff;
	p[5] = 1;
	assert(p + 6 == table + len);
	return finish(b, len);
}

static uint32_t mcfg(struct builder *b)
{
	uint8_t *p = begin(b, "MCFG", 1, HEADER + 24);

	put_le64(p + 44, PCI_ECAM_BASE);	/* segment 0, bus 0 */
	return finish(b, HEADER + 24);
}

static uint32_t xsdt(struct builder *b, const uint32_t *tables, unsigned n)
{
	uint8_t *p = begin(b, "XSDT", 1, HEADER + 8 * n);

	for (unsigned i = 0; i < n; i++)
		pointer(b, p + HEADER + 8 * i, 8, tables[i]);
	return finish(b, HEADER + 8 * n);
}

static uint32_t rsdt(struct builder *b, const uint32_t *tables, unsigned n)
{
	uint8_t *p = begin(b, "RSDT", 1, HEADER + 4 * n);

	for (unsigned i = 0; i < n; i++)
		pointer(b, p + HEADER + 4 * i, 4, tables[i]);
	return finish(b, HEADER + 4 * n);
}

static void rsdp(struct builder *b)
{
	uint8_t *p = b->a->rsdp;

	memcpy(p, "RSD PTR ", 8);
	memcpy(p + 9, "MERINO", 6);
	p[15] = 2;
	put_le32(p + 20, ACPI_RSDP_BYTES);
	put_le32(p + ACPI_RSDP_RSDT, (uint32_t)b->base + b->a->rsdt);
	put_le64(p + ACPI_RSDP_XSDT, b->base + b->a->xsdt);
	p[8] = checksum(p, 20);
	p[32] = checksum(p, ACPI_RSDP_BYTES);
}

void acpi_build(unsigned vcpus, uint64_t base, struct acpi *a)
{
	struct builder b = { a, base };
	uint32_t tables[3], facs_at, dsdt_at;

	*a = (struct acpi){ 0 };
	facs_at = facs(&b);
	dsdt_at = dsdt(&b, vcpus);
	tables[0] = fadt(&b, facs_at, dsdt_at);
	tables[1] = madt(&b, vcpus);
	tables[2] = mcfg(&b);
	a->xsdt = xsdt(&b, tables, 3);
	a->rsdt = rsdt(&b, tables, 3);
	rsdp(&b);
}
