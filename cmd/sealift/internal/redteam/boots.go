package redteam

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/papertpm"
)

// at returns the place of the nth event for which match holds.
func (b *box) at(what string, n int, match func(papertpm.Measurement) bool) (int, error) {
	for i, m := range b.boot.Measured {
		if match(m) {
			if n == 0 {
				return i, nil
			}
			n--
		}
	}
	return 0, fmt.Errorf("the boot that is imitated has no %s", what)
}

func inPCR(pcr int) func(papertpm.Measurement) bool {
	return func(m papertpm.Measurement) bool { return m.PCR == pcr && m.Type != attest.EventNoAction }
}

func ofType(t attest.EventType) func(papertpm.Measurement) bool {
	return func(m papertpm.Measurement) bool { return m.Type == t }
}

// measured changes one event that is measured, as it is measured and logged.
func measured(what string, n int, match func(papertpm.Measurement) bool, change func(*papertpm.Measurement)) func(*box) error {
	return func(b *box) error {
		i, err := b.at(what, n, match)
		if err != nil {
			return err
		}
		b.boot.Measured = slices.Clone(b.boot.Measured)
		change(&b.boot.Measured[i])
		return nil
	}
}

// logged changes the log, and not what was measured.
func logged(change func(*box, []papertpm.Measurement) ([]papertpm.Measurement, error)) func(*box) error {
	return func(b *box) (err error) {
		b.boot.Logged, err = change(b, slices.Clone(b.boot.Measured))
		return err
	}
}

// replaced is another content under the same type and data.
func replaced(content string) func(*papertpm.Measurement) {
	return func(m *papertpm.Measurement) { m.Measured, m.Digests = []byte(content), nil }
}

// logAttacks lie in the event log.
func logAttacks() []Attack {
	return []Attack{
		{
			Name: "log-event-retyped", What: "a boot loader that nobody knows is measured, and logged as an action",
			Reference: "go-attestation, docs/event-log-disclosure.md",
			Want:      want(attest.CodeEventUnknown),
			run: sent(measured("boot application", 0, ofType(attest.EventBootApplication), func(m *papertpm.Measurement) {
				m.Type, m.Data = attest.EventAction, []byte("Calling EFI Application from Boot Option")
				m.Measured, m.Digests = []byte("a boot loader"), nil
			}), nil),
		},
		{
			Name: "log-separator-retyped", What: "a separator under another type, so that what follows seems to come before it",
			Reference: "go-attestation, docs/event-log-disclosure.md",
			Want:      want(attest.CodeLogRetyped),
			run: sent(measured("separator in PCR 4", 0, func(m papertpm.Measurement) bool { return m.PCR == 4 && m.Type == attest.EventSeparator },
				func(m *papertpm.Measurement) { m.Type = attest.EventIPL }), nil),
		},
		{
			Name: "log-event-deleted", What: "an event that was measured is left out of the log",
			Reference: "Sailer et al., Design and Implementation of a TCG-based Integrity Measurement Architecture, USENIX Security 2004",
			Want:      want(attest.CodeLogDeleted),
			run: sent(logged(func(b *box, events []papertpm.Measurement) ([]papertpm.Measurement, error) {
				i, err := b.at("separator in PCR 4", 0, func(m papertpm.Measurement) bool { return m.PCR == 4 && m.Type == attest.EventSeparator })
				if err != nil {
					return nil, err
				}
				return slices.Delete(events, i, i+1), nil
			}), nil),
		},
		{
			Name: "log-events-reordered", What: "two events of a PCR change places",
			Reference: "google/go-attestation#190; Sailer et al., Design and Implementation of a TCG-based Integrity Measurement Architecture, USENIX Security 2004",
			Want:      want(attest.CodeLogReordered),
			run: sent(logged(func(b *box, events []papertpm.Measurement) ([]papertpm.Measurement, error) {
				i, err := b.at("event in PCR 7", 0, inPCR(7))
				if err != nil {
					return nil, err
				}
				j, err := b.at("second event in PCR 7", 1, inPCR(7))
				events[i], events[j] = events[j], events[i]
				return events, err
			}), nil),
		},
		{
			Name: "log-event-duplicated", What: "an event is in the log twice",
			Reference: "Sailer et al., Design and Implementation of a TCG-based Integrity Measurement Architecture, USENIX Security 2004",
			Want:      want(attest.CodeLogDuplicated),
			run: sent(logged(func(b *box, events []papertpm.Measurement) ([]papertpm.Measurement, error) {
				i, err := b.at("event in PCR 7", 0, inPCR(7))
				return slices.Insert(events, i, events[i]), err
			}), nil),
		},
		{
			Name: "variable-measured-twice", What: "a Secure Boot variable is measured twice, the second time with what the policy wants",
			Reference: "go-attestation, docs/event-log-disclosure.md: own events after those of the firmware",
			Want:      want(attest.CodeLogStructure),
			run: sent(func(b *box) error {
				i, err := b.at("variable in PCR 7", 0, ofType(attest.EventVariableConfig))
				if err != nil {
					return err
				}
				b.boot.Measured = slices.Insert(slices.Clone(b.boot.Measured), i, b.boot.Measured[i])
				return nil
			}, nil),
		},
		{
			Name: "log-event-appended", What: "an event that was not measured is appended to the log",
			Reference: "Sailer et al., Design and Implementation of a TCG-based Integrity Measurement Architecture, USENIX Security 2004",
			Want:      want(attest.CodeLogAdded),
			run: sent(logged(func(_ *box, events []papertpm.Measurement) ([]papertpm.Measurement, error) {
				return append(events, papertpm.Measurement{PCR: 4, Type: attest.EventBootApplication, Data: []byte("device path"), Measured: []byte("a boot loader")}), nil
			}), nil),
		},
		{
			Name: "event-not-logged", What: "something is measured and not logged",
			Reference: "google/go-attestation#498; Kauer, OSLO: Improving the Security of Trusted Computing, USENIX Security 2007",
			Want:      want(attest.CodeLogReplay),
			run: sent(func(b *box) error {
				b.boot.Unlogged = []papertpm.Measurement{{PCR: 4, Type: attest.EventBootApplication, Data: []byte("kexec")}}
				return nil
			}, nil),
		},
		{
			Name: "pcr7-log-deleted", What: "all events of PCR 7 are left out of the log",
			Reference: "google/go-attestation#112: a PCR without events is not compared",
			Want:      want(attest.CodeLogMissing),
			run: sent(logged(func(_ *box, events []papertpm.Measurement) ([]papertpm.Measurement, error) {
				return slices.DeleteFunc(events, inPCR(7)), nil
			}), nil),
		},
		{
			Name: "pcr7-never-measured", What: "firmware that measures nothing into PCR 7",
			Reference: "CVE-2021-42299 (TPM Carte Blanche); TCG PC Client Platform Firmware Profile, EV_SEPARATOR",
			Want:      want(attest.CodeLogStructure),
			run: sent(func(b *box) error {
				b.boot.Measured = slices.DeleteFunc(slices.Clone(b.boot.Measured), inPCR(7))
				return nil
			}, nil),
		},
		{
			Name: "device-path-altered", What: "the device path of a boot application is altered on the way: nobody measured it, but the quote covers the log",
			Reference: "go-attestation, docs/event-log-disclosure.md",
			Want:      want(attest.CodeQuoteEvidence),
			run: func(ctx context.Context, l *lab) (*answer, error) {
				b, err := l.box(ctx)
				if err != nil {
					return nil, err
				}
				i, err := b.at("boot application", 0, ofType(attest.EventBootApplication))
				if err != nil {
					return nil, err
				}
				return b.attest(ctx, func(x *exchange) error {
					altered := slices.Clone(b.boot.Measured)
					altered[i].Data = bytes.Repeat([]byte{0x7f}, len(altered[i].Data))
					if altered[i].Digests == nil {
						altered[i].Measured = b.boot.Measured[i].Bytes()
					}
					log := papertpm.EncodeLog(b.boot.Banks, altered)
					if bytes.Equal(log, x.request.Evidence.EventLog) {
						return errors.New("the log was not altered")
					}
					x.request.Evidence.EventLog = log
					return nil
				})
			},
		},
		{
			Name: "log-of-another-format", What: "bytes that are no event log",
			Reference: "TCG PC Client Platform Firmware Profile, Specification ID Version Event",
			Want:      want(attest.CodeLogMalformed),
			run: sent(func(b *box) error {
				b.boot.RawLog = bytes.Repeat([]byte{0xff}, 4096)
				return nil
			}, nil),
		},
		{
			Name: "log-of-endless-events", What: "a log whose counts and sizes promise gigabytes",
			Reference: "google/go-attestation#486, #490, #500, #513",
			Want:      want(attest.CodeLogMalformed),
			run: sent(func(b *box) error {
				b.boot.RawLog = append(papertpm.EncodeLog(b.boot.Banks, b.boot.Measured), bytes.Repeat([]byte{4, 0, 0, 0, 3, 0, 0, 0x80, 0xff, 0xff, 0xff, 0x7f}, 100)...)
				return nil
			}, nil),
		},
	}
}

// bootAttacks boot something else, and say so or not.
func bootAttacks() []Attack {
	return []Attack{
		{
			Name: "secure-boot-off", What: "Secure Boot is off",
			Reference: "UEFI Specification, Secure Boot; TCG PC Client Platform Firmware Profile, PCR 7",
			Want:      want(attest.CodeSecureBootOff),
			run: sent(func(b *box) error {
				name := papertpm.EncodeVariable(papertpm.GlobalGUID(), "SecureBoot", nil)
				i, err := b.at("variable SecureBoot", 0, func(m papertpm.Measurement) bool {
					return m.Type == attest.EventVariableConfig && len(m.Data) > len(name) && bytes.Equal(m.Data[:24], name[:24]) && bytes.Equal(m.Data[32:len(name)], name[32:])
				})
				if err != nil {
					return err
				}
				b.boot.Measured = slices.Clone(b.boot.Measured)
				b.boot.Measured[i].Data = papertpm.EncodeVariable(papertpm.GlobalGUID(), "SecureBoot", []byte{0})
				b.boot.Measured[i].Measured, b.boot.Measured[i].Digests = nil, nil
				return nil
			}, nil),
		},
		{
			Name: "old-image", What: "an image that the policy allows no more",
			Reference: "bitpixie, CVE-2023-21563: an older boot loader with a valid signature",
			Want:      want(attest.CodeImageUnknown, attest.CodeImageDenied),
			run:       sent(measured("boot application", 0, ofType(attest.EventBootApplication), replaced("the image of last year")), nil),
		},
		{
			Name: "root-file-system-planted", What: "a command line that names another dm-verity root hash, for a root file system of the sender's",
			Reference: "CVE-2026-32606; oddlama, Bypassing disk encryption on systems with automatic TPM2 unlock, 2025",
			Want:      want(attest.CodeCmdline),
			run: sent(measured("event of the load options", 0, func(m papertpm.Measurement) bool { return m.PCR == 9 && m.Type == attest.EventTag }, func(m *papertpm.Measurement) {
				m.Measured, m.Digests = papertpm.EncodeUTF16("console=ttyS0 sealift.roothash="+string(bytes.Repeat([]byte("e"), 64))), nil
			}), nil),
		},
		{
			Name: "initrd-swapped", What: "another initrd",
			Reference: "systemd/systemd#12716",
			Want:      want(attest.CodeEventUnknown, attest.CodeSection),
			run:       sent(measured("initrd in PCR 9", 1, func(m papertpm.Measurement) bool { return m.PCR == 9 && m.Type == attest.EventTag }, replaced("another initrd")), nil),
		},
		{
			Name: "command-line-from-outside", What: "a command line, credential or addon is given to the stub, which measures it into PCR 12",
			Reference: "systemd-stub(7): PCR 12",
			Want:      want(attest.CodePCRNotZero),
			run: sent(func(b *box) error {
				b.boot.Unlogged = []papertpm.Measurement{{PCR: 12, Type: attest.EventIPL, Data: []byte("init=/bin/sh")}}
				return nil
			}, nil),
		},
		{
			Name: "option-rom", What: "an option ROM that no policy names",
			Reference: "Hudson, Rudolph, Thunderstrike: EFI firmware bootkits for Apple MacBooks, SYSTOR 2015",
			Want:      want(attest.CodeEventUnknown),
			run: sent(func(b *box) error {
				i, err := b.at("separator in PCR 2", 0, func(m papertpm.Measurement) bool { return m.PCR == 2 && m.Type == attest.EventSeparator })
				if err != nil {
					return err
				}
				rom := papertpm.Measurement{PCR: 2, Type: attest.EventBootDriver, Data: []byte("device path"), Measured: []byte("an option ROM")}
				b.boot.Measured = slices.Insert(slices.Clone(b.boot.Measured), i, rom)
				return nil
			}, nil),
		},
		{
			Name: "firmware-unknown", What: "firmware that is no known build for the model",
			Reference: "ESET, LoJax: First UEFI rootkit found in the wild, 2018",
			Want:      want(attest.CodeFirmwareUnknown),
			run:       sent(allBlobs, nil),
		},
		{
			Name: "smbios-lies", What: "SMBIOS names another BIOS version than the one that was measured",
			Reference: "Butterworth et al., BIOS Chronomancy: Fixing the Core Root of Trust for Measurement, Black Hat 2013; DSP0134, 7.1",
			Want:      want(attest.CodeFirmwareClaim),
			run: sent(func(b *box) error {
				s, err := attest.ParseSMBIOS(b.boot.SMBIOS)
				if err != nil {
					return fmt.Errorf("the SMBIOS table of the boot that is imitated: %w", err)
				}
				b.boot.SMBIOS = papertpm.EncodeSMBIOS("99.99", s.Manufacturer, s.Product, s.Serial)
				return nil
			}, nil),
		},
		{
			Name: "capped-pcr", What: "the running system, whose boot was given its secrets and capped, asks again",
			Reference: "oddlama, Bypassing disk encryption on systems with automatic TPM2 unlock, 2025",
			Want:      want(attest.CodePCRCapped),
			run: sent(func(b *box) error {
				b.boot.Unlogged = []papertpm.Measurement{{PCR: 15, Type: attest.EventIPL, Data: []byte("volume key")}}
				return nil
			}, nil),
		},
	}
}

// allBlobs replaces all firmware.
func allBlobs(b *box) error {
	b.boot.Measured = slices.Clone(b.boot.Measured)
	found := false
	for i := range b.boot.Measured {
		m := &b.boot.Measured[i]
		if m.PCR == 0 && m.Type != attest.EventSeparator && m.Type != attest.EventNoAction && m.Type != attest.EventSCRTMVersion {
			m.Measured, m.Digests, found = fmt.Appendf(nil, "firmware of the sender %d", i), nil, true
		}
	}
	if !found {
		return errors.New("the boot that is imitated has no firmware in PCR 0")
	}
	return nil
}
