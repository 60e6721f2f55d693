/* From where a multiboot loader leaves us (32 bits, no paging) to a 64-bit processor with all its vector and tile registers switched on. */
#define CODE 0x08
#define DATA 0x10

    .text
    .align 4
    .long 0x1badb002, 0x3, -(0x1badb002 + 0x3) /* modules on pages, and a memory map */

    .bss
    .align 4096
top_table: .skip 4096
second_table: .skip 4096
third_table: .skip 4096
    .skip 65536
stack:
program_stack: .skip 8

    .data
    .align 16
gdt: .quad 0, 0x00af9a000000ffff, 0x00cf92000000ffff
gdt_end:
gdt_pointer: .word gdt_end - gdt - 1
    .quad gdt

    .text
    .code32
    .globl start
start:
    cli
    mov %ebx, %ebp
    mov $second_table + 3, %eax
    mov %eax, top_table
    mov $third_table + 3, %eax
    mov %eax, second_table
    xor %ecx, %ecx
    mov $0x83, %eax /* the first GiB as it is, in pages of 2 MiB */
1:  mov %eax, third_table(, %ecx, 8)
    add $0x200000, %eax
    inc %ecx
    cmp $512, %ecx
    jb 1b
    mov $top_table, %eax
    mov %eax, %cr3
    mov $0x10620, %eax /* PAE, SSE and its exceptions, FSGSBASE */
    mov %eax, %cr4
    mov $0xc0000080, %ecx
    rdmsr
    or $0x101, %eax /* long mode and syscall */
    wrmsr
    mov $0x80000033, %eax
    mov %eax, %cr0
    lgdt gdt_pointer
    ljmp $CODE, $long_mode

    .code64
long_mode:
    mov $DATA, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov $stack, %rsp
    mov $1, %eax
    cpuid
    bt $26, %ecx /* XSAVE: there are vector registers to switch on */
    jnc 2f
    mov %cr4, %rax
    or $0x40000, %rax
    mov %rax, %cr4
    mov $0xd, %eax
    xor %ecx, %ecx
    cpuid
    and $0x602e7, %eax /* x87, SSE, AVX, AVX-512, protection keys, tiles */
    xor %edx, %edx
    xor %ecx, %ecx
    xsetbv
2:  mov $0xc0000081, %ecx
    xor %eax, %eax
    mov $CODE, %edx
    wrmsr
    mov $0xc0000082, %ecx
    mov $system_call, %eax
    xor %edx, %edx
    wrmsr
    mov %ebp, %edi
    call machine
3:  hlt
    jmp 3b

/* The program runs in ring 0, too: sysret would leave it. */
system_call:
    mov %rsp, program_stack
    mov $stack - 32768, %rsp
    push %rcx
    push %r11
    push %rdi
    push %rsi
    push %rdx
    push %r8
    push %r9
    push %r10
    mov %r10, %rcx
    push %rax
    call call_of_program
    add $8, %rsp
    pop %r10
    pop %r9
    pop %r8
    pop %rdx
    pop %rsi
    pop %rdi
    pop %r11
    pop %rcx
    mov program_stack, %rsp
    jmp *%rcx

    .globl enter
enter: /* (entry, stack) */
    mov %rsi, %rsp
    xor %edx, %edx
    xor %ebp, %ebp
    jmp *%rdi

    .globl traps
    .balign 16
traps:
    .set vector, 0
    .rept 32
    .balign 16
    .if vector != 8 && (vector < 10 || vector > 14) && vector != 17 && vector != 21
    push $0
    .endif
    push $vector
    jmp trapped
    .set vector, vector + 1
    .endr
trapped:
    mov %rsp, %rdi
    mov $stack - 49152, %rsp
    call trap

    .section .note.GNU-stack, "", @progbits
