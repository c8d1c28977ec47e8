/* The stripped engine program; see blob.hpp. */
    .section .rodata.ocrctl_engine, "a", @progbits
    .balign 16
    .global ocrctl_engine_blob_begin
    .global ocrctl_engine_blob_end
ocrctl_engine_blob_begin:
    .incbin OCRCTL_ENGINE_FILE
ocrctl_engine_blob_end:
    .byte 0
    .section .note.GNU-stack, "", @progbits
