/* A machine that runs one static Linux program and ends: as much of an operating system as a test without threads and files needs.
 *
 * A multiboot loader brings this and, as its module, the program, which must be linked where PROGRAM says.  What it writes goes to the first serial port.  It runs in
 * ring 0, nothing is protected, so a wild store is not found here but by the tests' other run, under the sanitizers. */
#include <elf.h>
#include <stddef.h>
#include <stdint.h>

enum { PROGRAM = 256 << 20, HEAP_END = 384 << 20, MAPPED_END = 736 << 20, STACK_TOP = 752 << 20 };
enum { SERIAL = 0x3f8, BOCHS_PORT = 0x8900 }; /* "Shutdown" written there ends Bochs */

struct multiboot { /* what we read of it */
    uint32_t flags, memory[2], boot_device, command_line, modules, module;
};
struct module {
    uint32_t begin, end, words, reserved;
};

void enter(uint64_t entry, uint64_t *stack) __attribute__((noreturn));
void machine(uint32_t info);
void trap(const uint64_t *frame);
long call_of_program(long a, long b, long c, long d, long e, long f, long number);
extern char traps[];

static uint64_t heap, mapped = HEAP_END;

static void out(uint16_t port, uint8_t byte)
{
    __asm__ volatile("outb %0, %1" : : "a"(byte), "Nd"(port));
}

static uint8_t in(uint16_t port)
{
    uint8_t byte;

    __asm__ volatile("inb %1, %0" : "=a"(byte) : "Nd"(port));
    return byte;
}

static void say(const char *text, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        while (!(in(SERIAL + 5) & 0x20)) {
        }
        out(SERIAL, (uint8_t)text[i]);
    }
}

static void say_number(const char *what, uint64_t v)
{
    char digits[20];
    size_t n = 0, at = sizeof(digits);

    while (what[n]) n++;
    say(what, n);
    do digits[--at] = "0123456789abcdef"[v % 16];
    while (v /= 16);
    say(digits + at, sizeof(digits) - at);
}

static void end(uint64_t status) __attribute__((noreturn));
static void end(uint64_t status)
{
    say_number("\nemulated: exit ", status);
    say("\n", 1);
    while (!(in(SERIAL + 5) & 0x40)) {
    }
    for (const char *c = "Shutdown"; *c; c++) out(BOCHS_PORT, (uint8_t)*c);
    for (;;) __asm__ volatile("hlt");
}

/* frame: vector, error, rip, ... */
void trap(const uint64_t *frame)
{
    uint64_t address;

    __asm__ volatile("mov %%cr2, %0" : "=r"(address));
    say_number("\nemulated: exception ", frame[0]);
    say_number(" at ", frame[2]);
    say_number(", address ", address);
    end(0x80 | frame[0]);
}

static void set_traps(void)
{
    static struct {
        uint16_t low, selector, kind, middle;
        uint32_t high, zero;
    } idt[32];
    struct {
        uint16_t limit;
        uint64_t base;
    } __attribute__((packed)) pointer = {sizeof(idt) - 1, (uint64_t)idt};

    for (int i = 0; i < 32; i++) {
        uint64_t at = (uint64_t)(traps + 16 * i);

        idt[i].low = (uint16_t)at, idt[i].middle = (uint16_t)(at >> 16), idt[i].high = (uint32_t)(at >> 32);
        idt[i].selector = 8, idt[i].kind = 0x8e00;
    }
    __asm__ volatile("lidt %0" : : "m"(pointer));
}

static void set_thread(uint64_t at)
{
    __asm__ volatile("wrmsr" : : "c"(0xc0000100), "a"((uint32_t)at), "d"((uint32_t)(at >> 32)));
}

struct piece {
    const char *at;
    size_t n;
};

static long map(uint64_t bytes)
{
    uint64_t at = mapped;

    bytes = (bytes + 4095) & ~4095ull;
    if (mapped + bytes > MAPPED_END) return -12;
    mapped += bytes;
    for (uint64_t *p = (uint64_t *)at; p < (uint64_t *)(at + bytes); p++) *p = 0;
    return (long)at;
}

/* Numbers as Linux has them.  -38: no such call. */
long call_of_program(long a, long b, long c, long d, long e, long f, long number)
{
    static uint64_t now;
    long total = 0;

    (void)d, (void)e, (void)f;
    switch (number) {
    case 1: /* write */
        say((const char *)b, (size_t)c);
        return c;
    case 20: /* writev */
        for (const struct piece *p = (const struct piece *)b; c-- > 0; total += (long)p->n, p++) say(p->at, p->n);
        return total;
    case 9: /* mmap */
        return map((uint64_t)b);
    case 12: /* brk */
        if (a >= PROGRAM && a < HEAP_END) heap = (uint64_t)a;
        return (long)heap;
    case 158: /* arch_prctl: the thread's base, and leave to use tiles */
        if (a == 0x1002) set_thread((uint64_t)b);
        return a == 0x1002 || a == 0x1023 ? 0 : -22;
    case 228: /* clock_gettime: it passes */
        ((uint64_t *)b)[0] = ++now, ((uint64_t *)b)[1] = 0;
        return 0;
    case 318: /* getrandom */
        for (long i = 0; i < b; i++) ((uint8_t *)a)[i] = (uint8_t)(37 * i + 11);
        return b;
    case 60:
    case 231: /* exit */
        end((uint64_t)a);
    case 218: /* set_tid_address */
        return 1;
    case 10: /* mprotect, munmap, madvise, signals, robust list */
    case 11:
    case 28:
    case 13:
    case 14:
    case 273:
        return 0;
    default:
        return -38;
    }
}

/* The program's segments to where they belong; its stack as Linux hands it over. */
static uint64_t load(const char *file, uint64_t *stack)
{
    const Elf64_Ehdr *elf = (const Elf64_Ehdr *)file;
    const Elf64_Phdr *part = (const Elf64_Phdr *)(file + elf->e_phoff);
    uint64_t headers = 0;

    for (int i = 0; i < elf->e_phnum; i++) {
        if (part[i].p_type != PT_LOAD) continue;
        char *to = (char *)part[i].p_vaddr;

        for (uint64_t k = 0; k < part[i].p_memsz; k++) to[k] = k < part[i].p_filesz ? file[part[i].p_offset + k] : 0;
        if (part[i].p_offset <= elf->e_phoff && elf->e_phoff < part[i].p_offset + part[i].p_filesz)
            headers = part[i].p_vaddr + elf->e_phoff - part[i].p_offset;
        if (part[i].p_vaddr + part[i].p_memsz > heap) heap = part[i].p_vaddr + part[i].p_memsz;
    }
    heap = (heap + 4095) & ~4095ull;
    const uint64_t vectors[] = {AT_PHDR, headers,  AT_PHENT,     sizeof(*part), AT_PHNUM, elf->e_phnum, AT_PAGESZ,
                                4096,    AT_ENTRY, elf->e_entry, AT_SECURE,     0,        AT_RANDOM,    (uint64_t)elf,
                                AT_NULL, 0};
    for (size_t i = 0; i < sizeof(vectors) / sizeof(*vectors); i++) stack[i] = vectors[i];
    return elf->e_entry;
}

void machine(uint32_t info)
{
    const struct multiboot *m = (const struct multiboot *)(uint64_t)info;
    const struct module *program = (const struct module *)(uint64_t)m->module;
    uint64_t *stack = (uint64_t *)(uint64_t)(STACK_TOP - 65536), *at = stack;
    char *words;

    out(SERIAL + 3, 0x80), out(SERIAL, 1), out(SERIAL + 1, 0), out(SERIAL + 3, 3); /* as fast as it goes, 8 bits */
    set_traps();
    if (!(m->flags & 8) || !m->modules) end(126);
    words = (char *)(uint64_t)program->words;
    at++;
    for (uint64_t n = 0; *words && n < 16; stack[0] = ++n) {
        *at++ = (uint64_t)words;
        while (*words && *words != ' ') words++;
        while (*words == ' ') *words++ = 0;
    }
    *at++ = 0; /* end of arguments */
    *at++ = 0; /* no environment */
    enter(load((const char *)(uint64_t)program->begin, at), stack);
}
