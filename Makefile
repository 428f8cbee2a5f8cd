# Merino.  `make help` lists the targets.  Everything is built under $(BUILD).
PREFIX  ?= /usr/local
DESTDIR ?=
BUILD   ?= build
CC      ?= gcc
VERSION := 0.1.0
PKGS    := liburing libnbd json-c gnutls zlib libzstd

CFLAGS  ?= -O2 -g
WARN    := -Wall -Wextra -Wshadow -Wvla -Wstrict-prototypes -Wmissing-prototypes \
           -Wno-unused-parameter -Wno-missing-field-initializers -Werror
ALL_CFLAGS = -std=gnu17 -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64 -DMERINO_VERSION='"$(VERSION)"' \
           -I. -pthread $(WARN) $(CFLAGS) $(SAN) $(shell pkg-config --cflags $(PKGS))
LIBS    = $(shell pkg-config --libs $(PKGS)) -pthread

objs     = $(patsubst %.c,$(BUILD)/%.o,$(sort $(wildcard $(1)/*.c)))
LIB_OBJS = $(call objs,common) $(call objs,format) $(call objs,bitmaps) $(call objs,backup)
PROGRAMS = $(BUILD)/merinod $(BUILD)/merino
UNIT     = $(patsubst tests/unit/%.c,$(BUILD)/tests/%,$(sort $(wildcard tests/unit/test-*.c)))

.PHONY: all clean deps
all: $(PROGRAMS)

$(BUILD)/merinod: $(call objs,nbd-server) $(BUILD)/libmerino.a
	$(CC) $(ALL_CFLAGS) -o $@ $^ $(LIBS)
$(BUILD)/merino: $(call objs,clients) $(BUILD)/libmerino.a
	$(CC) $(ALL_CFLAGS) -o $@ $^ $(LIBS)
$(BUILD)/libmerino.a: $(LIB_OBJS)
	rm -f $@ && $(AR) rcs $@ $^
$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(ALL_CFLAGS) -MMD -MP -c -o $@ $<
$(BUILD)/tests/%: tests/unit/%.c $(BUILD)/libmerino.a
	@mkdir -p $(@D)
	$(CC) $(ALL_CFLAGS) -MMD -MP -o $@ $< $(BUILD)/libmerino.a $(LIBS) -lcmocka
unit: $(UNIT)

clean:
	rm -rf build build-*

-include $(wildcard $(BUILD)/*/*.d $(BUILD)/tests/*.d)
