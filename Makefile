# make            build build/factorllm
# make demo       install what is missing, build, run the main job on the model that ships with the repository
# make test       the same set-up and all tests; ends in one line "N passed, M failed"
# make check      layers, headers, formatting, and no warning under gcc and clang
# make sanitize   the tests under AddressSanitizer and UndefinedBehaviorSanitizer
# make tsan       the tests of threads under ThreadSanitizer
# make fuzz       every parser for SECONDS=60 each, with clang's libFuzzer
# make bench      five minutes of measurements on this machine, and what they mean against its limits
# make emulate    the kernels for AVX-512 and AMX on an emulated processor (needs Bochs 3)
# make install    PREFIX=/usr/local

PREFIX  ?= /usr/local
SECONDS ?= 60
BUILD   ?= build
CC      := $(if $(filter default,$(origin CC)),gcc,$(CC))
CXX     := $(if $(filter default,$(origin CXX)),g++,$(CXX))
VERSION := $(shell git describe --always --dirty 2>/dev/null || echo unknown)

LAYERS ?= $(shell sed -n 's/^\([a-z]*\):.*/\1/p' src/LAYERS)
PKGS   := jansson libpcre2-8 libutf8proc yaml-0.1 libprotobuf-c ompi-c sentencepiece libcrypto

# sanitizers: what -O3 unrolls takes them three times as long to compile and finds nothing more
OPT      ?= $(if $(SAN),-O1,-O3) -g
WARN     := -Wall -Wextra -Wshadow -Wconversion -Wno-sign-conversion
CWARN    := $(WARN) -Wmissing-prototypes -Wstrict-prototypes -Wvla
comma    := ,
SANFLAGS := $(if $(SAN),$(if $(filter thread,$(SAN)),-fsanitize=thread,-fsanitize=address$(comma)undefined -fno-sanitize-recover=undefined) -fno-omit-frame-pointer)
INCLUDE  := -Isrc -I$(BUILD)/proto $(patsubst -I%,-isystem %,$(shell pkg-config --cflags-only-I $(PKGS) 2>/dev/null))
CPPFLAGS += -D_GNU_SOURCE -MMD -MP $(INCLUDE)
# no fused multiply-add but where the text says so: bits must not depend on the processor
CFLAGS   += -std=gnu11 $(OPT) -fno-math-errno -ffp-contract=off $(CWARN) $(SANFLAGS)
CXXFLAGS += -std=c++17 $(OPT) $(WARN) $(SANFLAGS)
LDLIBS   := $(filter-out -lsentencepiece_train,$(shell pkg-config --libs $(PKGS) 2>/dev/null)) -lpthread -lm

# The set-up targets build on all processors, unless make was told how many
JOBS := $(if $(findstring -j,$(MAKEFLAGS)),,-j$(shell nproc))

# make V=1 shows the commands
Q   := $(if $(V),,@)
say := @printf '  %-5s %s\n'

PROTO   := $(BUILD)/proto/job.pb-c
SOURCES := $(filter-out src/cli/main.c,$(foreach d,$(LAYERS),$(wildcard src/$d/*.c)))
SHIMS   := $(foreach d,$(LAYERS),$(wildcard src/$d/*.cc))
OBJECTS := $(SOURCES:%.c=$(BUILD)/%.o) $(SHIMS:%.cc=$(BUILD)/%.o) $(if $(filter data,$(LAYERS)),$(PROTO).o)
LIBRARY := $(BUILD)/libfactorllm.a
UNIT    := $(patsubst %.c,$(BUILD)/%,$(wildcard tests/unit/*.c))
MPI     := $(patsubst %.c,$(BUILD)/%,$(wildcard tests/mpi/*.c))
FUZZERS := $(patsubst %.c,%,$(notdir $(wildcard tests/fuzz/*.c)))

.PHONY: FORCE all demo test check sanitize tsan fuzz bench emulate install clean bootstrap format
all: $(BUILD)/factorllm

$(BUILD)/factorllm: $(BUILD)/src/cli/main.o $(LIBRARY)
	$(say) LINK $@
	$(Q)$(CXX) $(CXXFLAGS) $^ -o $@ $(LDLIBS)

$(LIBRARY): $(OBJECTS)
	$(Q)rm -f $@
	$(Q)ar rcs $@ $^

$(BUILD)/%.o: %.c | $(PROTO).h
	$(say) CC $<
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) -c $< -o $@
# kernels that are chosen at run time; fused operations stand in the code, -ffp-contract=off lets no other ones in
ifneq ($(findstring x86_64,$(shell $(CC) -dumpmachine)),)
$(BUILD)/src/num/kernel_avx2.o: CFLAGS += -mavx2 -mfma
# sanitizers see kernel_avx2.c; its bodies unrolled for 32 registers take them half an hour to compile, so these two are those of the build around
# build/sanitize or build/thread (of another BUILD with SAN: in BUILD/plain), and are compiled once
ifdef SAN
AROUND    := $(if $(filter %/sanitize %/thread,$(BUILD)),$(patsubst %/,%,$(dir $(BUILD))),$(BUILD)/plain)
UNCHANGED := src/num/kernel_avx512.o src/num/kernel_vnni.o
$(UNCHANGED:%=$(BUILD)/%) &: FORCE
	@$(MAKE) --no-print-directory -s BUILD=$(AROUND) SAN= $(UNCHANGED:%=$(AROUND)/%)
	$(Q)mkdir -p $(BUILD)/src/num
	$(Q)for o in $(UNCHANGED); do cmp -s $(AROUND)/$$o $(BUILD)/$$o || cp $(AROUND)/$$o $(BUILD)/$$o; done
endif
$(BUILD)/src/num/kernel_avx512.o: CFLAGS += -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma
$(BUILD)/src/num/kernel_vnni.o: CFLAGS += -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mfma
$(BUILD)/src/num/kernel_bf16.o: CFLAGS += -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512bf16 -mfma
$(BUILD)/src/num/kernel_amx.o: CFLAGS += -mavx512f -mavx512bw -mavx512dq -mavx512vl -mamx-tile -mamx-bf16 -mamx-int8 -mfma
endif
$(BUILD)/%.o: %.cc
	$(say) CXX $<
	$(Q)mkdir -p $(@D)
	$(Q)$(CXX) $(CPPFLAGS) $(CXXFLAGS) -c $< -o $@

# rewritten only when the version changes, so that what is built says what it was built from
$(BUILD)/version: FORCE
	$(Q)mkdir -p $(@D)
	$(Q)echo '$(VERSION)' | cmp -s - $@ || echo '$(VERSION)' >$@
FORCE:
$(BUILD)/src/cli/main.o: CPPFLAGS += -DVERSION='"$(VERSION)"'
$(BUILD)/src/cli/main.o: $(BUILD)/version

# protoc-c's output is not ours to warn about
$(PROTO).c $(PROTO).h &: proto/job.proto
	$(Q)mkdir -p $(@D)
	$(Q)protoc-c --c_out=$(@D) --proto_path=proto $<
$(PROTO).o: $(PROTO).c
	$(Q)$(CC) $(CPPFLAGS) -std=gnu11 $(OPT) $(SANFLAGS) -c $< -o $@

$(UNIT) $(MPI): $(BUILD)/%: $(BUILD)/%.o $(LIBRARY)
	$(say) LINK $@
	$(Q)$(CXX) $(CXXFLAGS) $^ -o $@ $(LDLIBS) -lcmocka

bootstrap:
	@scripts/bootstrap.sh

demo: bootstrap
	@$(MAKE) --no-print-directory $(JOBS) all
	@scripts/demo.sh

# the browser is wanted, not needed: without one its test says that it is skipped
test: bootstrap
	@[ "$$(id -u)" != 0 ] || scripts/bootstrap.sh --browser || echo "no browser: the test of pages in one will be skipped"
	@$(MAKE) --no-print-directory $(JOBS) all unit-and-mpi
	@$(MAKE) --no-print-directory $(JOBS) BUILD=$(BUILD)/sanitize SAN=1 unit-and-mpi
	@scripts/run_tests.sh $(BUILD) $(BUILD)/sanitize

sanitize: bootstrap
	@$(MAKE) --no-print-directory $(JOBS) BUILD=$(BUILD)/sanitize SAN=1 all unit-and-mpi
	@scripts/run_tests.sh $(BUILD)/sanitize

# unit tests of what has threads, and of all that uses it; no MPI, whose threads and shared memory the sanitizer does not know
THREADED := backward base cholesky convert engine exact factorize forward gemm grouping model moe moe_golden moments
tsan: bootstrap
	@$(MAKE) --no-print-directory $(JOBS) BUILD=$(BUILD)/thread SAN=thread $(THREADED:%=$(BUILD)/thread/tests/unit/test_%)
	@TESTS='^test_($(subst $(eval ) ,|,$(THREADED)))$$' scripts/run_tests.sh $(BUILD)/thread

.PHONY: unit-and-mpi
unit-and-mpi: $(UNIT) $(MPI)

check:
	@scripts/check.sh

format:
	@clang-format-14 -i $(wildcard src/*/*.[ch] src/*/*.cc tests/*.h tests/*/*.[ch])

fuzz:
	@scripts/fuzz.sh $(SECONDS) $(FUZZERS)

emulate:
	@$(MAKE) --no-print-directory $(JOBS) LAYERS="base num" BUILD=$(BUILD)/emulate $(BUILD)/emulate/libfactorllm.a
	@scripts/emulate.sh $(BUILD)/emulate test_half exact 9
	@scripts/emulate.sh $(BUILD)/emulate test_kernel avx512 20
	@scripts/emulate.sh $(BUILD)/emulate test_kernel vnni 20
	@scripts/emulate.sh $(BUILD)/emulate test_kernel amx 3
	@scripts/emulate.sh $(BUILD)/emulate test_attention 65

bench: all
	@scripts/bench.sh $(BUILD)

install: all
	install -D -m 755 $(BUILD)/factorllm $(DESTDIR)$(PREFIX)/bin/factorllm

clean:
	rm -rf build

-include $(OBJECTS:.o=.d) $(UNIT:=.d) $(MPI:=.d) $(BUILD)/src/cli/main.d
