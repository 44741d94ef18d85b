package tpm

import (
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// Rest removes the keys from the TPM's memory and tells the TPM that power may
// go now (TPM2_Shutdown CLEAR, Part 3, 9.4). Call it whenever nothing more is
// asked of the TPM for a while; a later call wakes it again.
//
// Without it a power cut after Activate counts as a failed authorization: the
// endorsement key is subject to dictionary attack protection, and a TPM that
// loses power after such a key was used, and before an orderly shutdown, must
// take it for a guess (Part 1, 17.8.6). A few cuts in a row, three with
// swtpm's defaults, lock the TPM and so the machine, until Activate ends it where
// it may.
func (t *TPM) Rest() error {
	err := errors.Join(t.flush(&t.ek), t.flush(&t.ak), t.flush(&t.tk))
	if _, down := (tpm2.Shutdown{ShutdownType: tpm2.TPMSUClear}).Execute(t.transport); down != nil {
		err = errors.Join(err, down)
	}
	if err != nil {
		return fmt.Errorf("lay the tpm to rest: %w", err)
	}
	return nil
}
