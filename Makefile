# Merino.  `make help` lists the targets.  Everything is built under $(BUILD).
PREFIX  ?= /usr/local
DESTDIR ?=
UNITDIR ?= $(PREFIX)/lib/systemd/system
SYSUSERSDIR ?= $(PREFIX)/lib/sysusers.d
BUILD   ?= build
ifeq ($(origin CC),default)		# make's own is cc, and ?= would leave it
CC      := gcc
endif
VERSION := 0.1.0
V       ?= 0
Q       := $(if $(filter 1,$(V)),,@)
say     = $(if $(filter 1,$(V)),,@printf '  %-5s %s\n' $(1) $@;)

PKGS    := liburing libnbd json-c gnutls zlib libzstd libdeflate libseccomp
CFLAGS  ?= -O2 -g
WERROR  ?= -Werror
WARN    := -Wall -Wextra -Wshadow -Wvla -Wstrict-prototypes -Wmissing-prototypes \
           -Wno-unused-parameter -Wno-missing-field-initializers $(WERROR)
# SAN: sanitizer flags, for check-asan and check-tsan.
ALL_CFLAGS = -std=gnu17 -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64 -DMERINO_VERSION='"$(VERSION)"' \
           -I. -pthread $(WARN) $(CFLAGS) $(SAN) $(PKG_CFLAGS)
PKG_CFLAGS := $(shell pkg-config --cflags $(PKGS) 2>/dev/null)
# libslirp: its .pc file asks for glib's, which it does not need.
LIBS    := -Wl,--as-needed $(shell pkg-config --libs $(PKGS) 2>/dev/null) -lslirp -pthread

objs     = $(patsubst %.c,$(BUILD)/%.o,$(sort $(wildcard $(1)/*.c)))
LIB_OBJS = $(foreach d,common format bitmaps backup,$(call objs,$(d)))
PROGRAMS = $(BUILD)/merinod $(BUILD)/merino $(BUILD)/merino-vmm
UNIT     = $(patsubst tests/unit/%.c,$(BUILD)/tests/%,$(sort $(wildcard tests/unit/test-*.c)))
MANS     = $(patsubst doc/%.pod,$(BUILD)/doc/%,$(sort $(wildcard doc/*.[1578].pod))) \
           $(BUILD)/doc/merinod-qmp.7

.PHONY: all programs mans unit guest help deps check check-run check-asan check-tsan check-valgrind \
        soak fuzzers fuzz-programs fuzz demo bench lint install install-units clean
.SECONDARY:

all: programs mans			## the programs and man pages
programs: $(PROGRAMS)
mans: $(MANS)

$(BUILD)/merinod: $(call objs,nbd-server) $(BUILD)/libmerino.a
	$(call say,LD)$(CC) $(ALL_CFLAGS) -o $@ $^ $(LIBS)
$(BUILD)/merino: $(call objs,clients) $(BUILD)/libmerino.a
	$(call say,LD)$(CC) $(ALL_CFLAGS) -o $@ $^ $(LIBS)
$(BUILD)/merino-vmm: $(BUILD)/vmm/main.o $(BUILD)/libvmm.a $(BUILD)/libmerino.a
	$(call say,LD)$(CC) $(ALL_CFLAGS) -o $@ $^ $(LIBS)
$(BUILD)/libvmm.a: $(filter-out %/main.o,$(call objs,vmm))
	$(call say,AR)rm -f $@ && $(AR) rcs $@ $^
$(BUILD)/libmerino.a: $(LIB_OBJS)
	$(call say,AR)rm -f $@ && $(AR) rcs $@ $^
$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	$(call say,CC)$(CC) $(ALL_CFLAGS) -MMD -MP -c -o $@ $<
# Unit tests are linked with the library and with nbd-server/ but its main.
$(BUILD)/tests/%: tests/unit/%.c $(BUILD)/libmerino.a $(BUILD)/libserver.a
	@mkdir -p $(@D)
	$(call say,CC)$(CC) $(ALL_CFLAGS) -MMD -MP -o $@ $< $(BUILD)/libserver.a $(BUILD)/libmerino.a $(LIBS) -lcmocka
# Those of the virtual machine: with vmm/ but its main, and common/.
$(BUILD)/tests/test-vmm-%: tests/unit/test-vmm-%.c $(BUILD)/libvmm.a $(BUILD)/libmerino.a
	@mkdir -p $(@D)
	$(call say,CC)$(CC) $(ALL_CFLAGS) -MMD -MP -o $@ $(filter %.c %.a,$^) $(LIBS) -lcmocka
$(BUILD)/libserver.a: $(filter-out %/main.o,$(call objs,nbd-server))
	$(call say,AR)rm -f $@ && $(AR) rcs $@ $^
unit: $(UNIT) guest			## the unit tests' programs

# The payload that tests boot: no library, no operating system.
GUEST_CFLAGS = -std=gnu17 -O2 -g -m64 -ffreestanding -fno-pic -mcmodel=small -mno-red-zone \
           -mgeneral-regs-only -fno-stack-protector -fno-asynchronous-unwind-tables $(WARN)
guest: $(BUILD)/guest/payload $(BUILD)/guest/sector
$(BUILD)/guest/payload: tests/guest/payload.ld $(patsubst tests/guest/%,$(BUILD)/guest/%.o,$(wildcard tests/guest/*.[cS]))
	$(call say,LD)$(CC) -m64 -nostdlib -static -no-pie -Wl,--build-id=none -Wl,-z,max-page-size=4096 \
		-Wl,-z,noexecstack -Wl,--no-warn-rwx-segments -Wl,-T,$< -o $@ $(filter %.o,$^)
$(BUILD)/guest/sector: $(BUILD)/guest/bios/sector.S.o
	$(call say,LD)$(LD) -m elf_x86_64 --oformat binary -Ttext 0x7c00 -e 0x7c00 -o $@ $<
$(BUILD)/guest/%.o: tests/guest/%
	@mkdir -p $(@D)
	$(call say,CC)$(CC) $(GUEST_CFLAGS) -MMD -MP -c -o $@ $<

# Fuzz targets are built by clang, for libFuzzer, with everything below them.
FUZZ     = $(patsubst tests/fuzz/fuzz-%.c,$(BUILD)/fuzz/%,$(sort $(wildcard tests/fuzz/fuzz-*.c)))
FUZZ_SECONDS ?= 3600
$(BUILD)/fuzz/%: tests/fuzz/fuzz-%.c $(BUILD)/libmerino.a $(BUILD)/libserver.a
	@mkdir -p $(@D)
	$(call say,CC)$(CC) $(ALL_CFLAGS) -fsanitize=fuzzer -MMD -MP -o $@ $< $(BUILD)/libserver.a $(BUILD)/libmerino.a $(LIBS)
$(BUILD)/fuzz/vmm-%: tests/fuzz/fuzz-vmm-%.c $(BUILD)/libvmm.a $(BUILD)/libmerino.a
	@mkdir -p $(@D)
	$(call say,CC)$(CC) $(ALL_CFLAGS) -fsanitize=fuzzer -MMD -MP -o $@ $(filter %.c %.a,$^) $(LIBS)
fuzz-programs: $(FUZZ)
fuzzers:				## the fuzz targets' programs
	@$(MAKE) --no-print-directory BUILD=$(BUILD)-fuzz CC="$(FUZZ_CC)" CFLAGS="-O1 -g -fno-omit-frame-pointer" \
		SAN="-fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=undefined -D__SANITIZE_ADDRESS__=1" \
		WERROR= fuzz-programs
FUZZ_CC ?= $(if $(findstring ccache,$(CC)),ccache )clang

pod2man  = pod2man -u -r "merino $(VERSION)" -c "Merino" \
		-n $(shell echo $(basename $*) | tr a-z A-Z) -s $(subst .,,$(suffix $*)) $< $@
$(BUILD)/doc/%: doc/%.pod
	@mkdir -p $(@D)
	$(call say,MAN)$(pod2man)
$(BUILD)/doc/%: $(BUILD)/doc/%.pod
	$(call say,MAN)$(pod2man)
# The list of commands comes from the program's own table.
$(BUILD)/doc/merinod-qmp.7.pod: doc/merinod-qmp.7.pod.in $(BUILD)/merinod
	@mkdir -p $(@D)
	$(call say,POD)$(BUILD)/merinod --qmp-commands=pod > $@.list && \
		sed -e '/^@COMMANDS@$$/{r '$@.list -e 'd}' $< > $@.tmp && rm $@.list && mv $@.tmp $@

help:					## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*##/\1\t/' | expand -t 18

deps:					## installs what is missing, from Debian (apt-get; sudo when not root)
	@tests/deps

# Each of the next two is the only command that a fresh machine needs.
check: deps				## everything that gates a change, under 10 minutes
	@$(MAKE) --no-print-directory check-run
demo: deps				## three live disks and a virtual machine, one instant, crashes, all proven
	@$(MAKE) --no-print-directory programs guest
	@BUILD=$(BUILD) tests/demo/demo

check-run: programs mans unit fuzzers lint
	@BUILD=$(BUILD) FUZZ=$(BUILD)-fuzz/fuzz FUZZ_SECONDS=5 tests/run $(BUILD)
soak: deps				## the tests' long forms: hours
	@$(MAKE) --no-print-directory programs unit
	@tests/soak $(BUILD) $(SOAK)
fuzz: deps				## every fuzz target for FUZZ_SECONDS each (default: an hour)
	@$(MAKE) --no-print-directory fuzzers
	@tests/fuzz/run $(BUILD)-fuzz/fuzz $(FUZZ_SECONDS)
check-asan: deps			## the suite under AddressSanitizer and UBSan
	@$(MAKE) --no-print-directory BUILD=build-asan CFLAGS="-O1 -g -fno-omit-frame-pointer" \
		SAN="-fsanitize=address,undefined -fno-sanitize-recover=undefined" programs unit
	@tests/run build-asan
check-tsan: deps			## the suite under ThreadSanitizer
	@$(MAKE) --no-print-directory BUILD=build-tsan CFLAGS="-O1 -g -fno-omit-frame-pointer" \
		SAN="-fsanitize=thread" programs unit
	@tests/run build-tsan
check-valgrind: deps			## the unit tests and one NBD pass under valgrind
	@$(MAKE) --no-print-directory programs unit
	@tests/run-valgrind $(BUILD)
bench: deps				## side by side with QEMU, nbdkit and nbd-server: ratios
	@$(MAKE) --no-print-directory programs guest
	@tests/bench/run $(BUILD) $(STEPS)
lint:					## rules of the house that a machine can check
	@tests/lint

install: all				## into $(DESTDIR)$(PREFIX), units into UNITDIR
	install -d $(DESTDIR)$(PREFIX)/bin
	install -m 755 $(PROGRAMS) $(DESTDIR)$(PREFIX)/bin
	$(Q)for m in $(MANS); do \
		s=$${m##*.}; install -d $(DESTDIR)$(PREFIX)/share/man/man$$s && \
		install -m 644 $$m $(DESTDIR)$(PREFIX)/share/man/man$$s; done

	install -d $(DESTDIR)$(PREFIX)/share/doc/merino
	install -m 644 doc/merinod.json $(DESTDIR)$(PREFIX)/share/doc/merino
	@$(MAKE) --no-print-directory install-units
install-units:				## the systemd units alone
	install -d $(DESTDIR)$(UNITDIR) $(DESTDIR)$(SYSUSERSDIR)
	$(Q)sed 's,@BINDIR@,$(PREFIX)/bin,; s,@NAME@,merinod,g; s, @WHICH@,,' \
		systemd/merinod.service.in > $(DESTDIR)$(UNITDIR)/merinod.service
	$(Q)sed 's,@BINDIR@,$(PREFIX)/bin,; s,@NAME@,%i,g; s,@WHICH@,%i,' \
		systemd/merinod.service.in > $(DESTDIR)$(UNITDIR)/merinod@.service
	install -m 644 systemd/merinod.socket $(DESTDIR)$(UNITDIR)/merinod.socket
	install -m 644 systemd/merino.conf $(DESTDIR)$(SYSUSERSDIR)/merino.conf

clean:					## removes what was built
	rm -rf build build-*

-include $(wildcard $(BUILD)/*/*.d)
