package tpm

import (
	"strings"
	"testing"
)

func TestALockoutThatDoesNotEndIsAnError(t *testing.T) {
	permanent := func(value byte) []byte {
		// TPM_CAP_TPM_PROPERTIES, one: TPM_PT_PERMANENT.
		return []byte{0x80, 1, 0, 0, 0, 27, 0, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 1, 0, 0, 2, 0, 0, 0, 0, value}
	}
	for name, c := range map[string]struct {
		responses [][]byte
		want      string
	}{
		"no answer":                         {nil, "TPMA_PERMANENT"},
		"another property":                  {[][]byte{append(permanent(0)[:19:19], 0, 0, 2, 1, 0, 0, 0, 0)}, "does not tell TPMA_PERMANENT"},
		"somebody has the hierarchy":        {[][]byte{permanent(lockoutAuthSet)}, "has an authorization value"},
		"the hierarchy is shut":             {[][]byte{permanent(0), {0x80, 1, 0, 0, 0, 10, 0, 0, 9, 0x21}}, "TPM2_DictionaryAttackLockReset: TPM_RC_LOCKOUT"},
		"a response that is cut off":        {[][]byte{permanent(0), {0x80, 1, 0, 0}}, "a response of 4 bytes"},
		"the TPM is gone before the answer": {[][]byte{permanent(0), {}}, "a response of 0 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			err := New(&scripted{responses: c.responses}).endLockout()
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
	if err := New(&scripted{responses: [][]byte{permanent(0), {0x80, 2, 0, 0, 0, 10, 0, 0, 0, 0}}}).endLockout(); err != nil {
		t.Error(err)
	}
}
