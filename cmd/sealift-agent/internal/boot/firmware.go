package boot

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/sealift/sealift/attest"
)

// Where the kernel shows what firmware left behind.
const (
	eventLogPath = "/sys/kernel/security/tpm0/binary_bios_measurements"
	smbiosPath   = "/sys/firmware/dmi/tables/DMI"
	tpmPath      = "/dev/tpmrm0"
)

// ReadEventLog returns the TCG event log that firmware and boot loader wrote.
func ReadEventLog() ([]byte, error) {
	b, err := readBounded(eventLogPath, attest.MaxEventLog)
	if err != nil {
		return nil, fmt.Errorf("read the event log: %w", err)
	}
	return b, nil
}

// ReadSMBIOS returns the SMBIOS structure table (DSP0134), without its entry
// point.
func ReadSMBIOS() ([]byte, error) {
	b, err := readBounded(smbiosPath, attest.MaxSMBIOS)
	if err != nil {
		return nil, fmt.Errorf("read the SMBIOS table: %w", err)
	}
	return b, nil
}

func readBounded(name string, limit int) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, int64(limit)+1))
	if err != nil {
		return nil, err
	}
	if len(b) > limit {
		return nil, fmt.Errorf("%s: more than %d bytes", name, limit)
	}
	if len(b) == 0 {
		return nil, fmt.Errorf("%s: empty", name)
	}
	return b, nil
}

// WaitTPM waits until the TPM's resource-managed device is there, and returns
// its path.
func WaitTPM(ctx context.Context, limit time.Duration) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		_, err := os.Stat(tpmPath)
		if err == nil {
			return tpmPath, nil
		}
		if !errors.Is(err, os.ErrNotExist) {
			return "", fmt.Errorf("wait for the TPM: %w", err)
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("wait for the TPM: no %s after %s", tpmPath, limit)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// System is SMBIOS type 1, System Information (DSP0134 7.2). All of it is
// what the machine claims of itself.
type System struct {
	Manufacturer string
	Product      string
	Serial       string
	UUID         string // lower case, as Linux prints it; empty if unset
}

// ParseSystem finds type 1 in an SMBIOS structure table. A table without one,
// or one cut short, is an error.
func ParseSystem(table []byte) (System, error) {
	for rest := table; len(rest) >= 4; {
		typ, n := rest[0], int(rest[1])
		if n < 4 || n > len(rest) {
			return System{}, fmt.Errorf("SMBIOS: type %d: length is %d with %d bytes left", typ, n, len(rest))
		}
		formatted := rest[:n]
		// The strings follow, each with a NUL, and one more NUL ends the set.
		end := bytes.Index(rest[n:], []byte{0, 0})
		if end < 0 {
			return System{}, fmt.Errorf("SMBIOS: type %d: the strings have no end", typ)
		}
		strs := strings.Split(string(rest[n:n+end]), "\x00")
		rest = rest[n+end+2:]
		if typ == 127 { // end of table
			break
		}
		if typ != 1 {
			continue
		}
		str := func(offset int) string {
			if offset >= n {
				return ""
			}
			i := int(formatted[offset])
			if i == 0 || i > len(strs) {
				return ""
			}
			return strings.TrimSpace(strs[i-1])
		}
		s := System{Manufacturer: str(4), Product: str(5), Serial: str(7)}
		if n >= 24 {
			s.UUID = formatUUID(formatted[8:24])
		}
		return s, nil
	}
	return System{}, errors.New("SMBIOS: no system information (type 1)")
}

// formatUUID prints the 16 bytes with the first three fields in little-endian
// order (DSP0134 7.2.1). All zeros and all ones mean that there is none.
func formatUUID(b []byte) string {
	if len(bytes.Trim(b, "\x00")) == 0 || len(bytes.Trim(b, "\xff")) == 0 {
		return ""
	}
	u := []byte{b[3], b[2], b[1], b[0], b[5], b[4], b[7], b[6]}
	u = append(u, b[8:16]...)
	h := hex.EncodeToString(u)
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}
