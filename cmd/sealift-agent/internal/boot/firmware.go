package boot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
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
