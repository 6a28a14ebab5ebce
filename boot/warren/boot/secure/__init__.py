"""What firmware lets start, and what was measured.

    firmware         keys, UEFI machines under Secure Boot, and their verdict
    chain            PCR = SHA256(PCR ‖ SHA256(x)): what was measured, and whether a value follows from it
    eventlog         what firmware and kernel say they measured
    tpm              a TPM beside a machine, by swtpm
"""
