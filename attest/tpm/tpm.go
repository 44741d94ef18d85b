// Package tpm is a machine's side of attestation: it drives the TPM 2.0 of the
// machine that it runs on. The steps, in their order:
//
//   - Identify chooses the endorsement key and makes the attestation key,
//   - Activate proves to the service that both are in one TPM,
//   - Collect quotes the PCRs and makes the transport key,
//   - Unwrap opens what the service wrapped to the transport key,
//   - UnsealDeviceHalf opens what SealDeviceHalf once sealed to signed boots,
//   - Cap changes PCRs so that nothing later in this boot can do it again.
//
// Nothing is stored in the TPM: all keys are primary keys, which the TPM
// derives again from its seeds. The specification is the TPM 2.0 Library
// (TCG); "Part 3, 18.4" in comments means its parts and sections.
package tpm

import (
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxtpm"
)

// TPM is a connection to a TPM. It is not safe for concurrent use.
//
// It keeps the endorsement, attestation and transport keys loaded between
// calls. A TPM without a resource manager has room for only three objects, so
// a call that loads others first removes those keys that it can make again.
type TPM struct {
	transport transport.TPM
	closer    io.Closer // nil if the connection is the caller's

	identity *Identity
	service  string // that identity is for

	ekTemplate tpm2.TPMTPublic // of identity's or EK's endorsement key

	ek       *object // endorsement key
	ak       *object // attestation key
	tk       *object // transport key
	tkPolicy []byte  // authPolicy of tk
	tkBank   bank    // of which tkPolicy is
}

// Open connects to the TPM at path: a device such as /dev/tpmrm0. If path is
// empty it is /dev/tpmrm0, or /dev/tpm0 where the kernel has no resource
// manager.
func Open(path string) (*TPM, error) {
	paths := []string{path}
	if path == "" {
		paths = []string{"/dev/tpmrm0", "/dev/tpm0"}
	}
	var err error
	for _, p := range paths {
		var t transport.TPMCloser
		if t, err = linuxtpm.Open(p); err == nil {
			return &TPM{transport: t, closer: t}, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("open tpm %s: %w", p, err)
		}
	}
	return nil, fmt.Errorf("open tpm: none of %q exists: the machine has no TPM 2.0, it is off in the firmware's setup, or its driver is not loaded: %w", paths, err)
}

// New uses a connection that the caller has opened and will close.
func New(t transport.TPM) *TPM { return &TPM{transport: t} }

// Close removes the keys from the TPM's memory and closes the connection.
func (t *TPM) Close() error {
	err := errors.Join(t.flush(&t.ek), t.flush(&t.ak), t.flush(&t.tk))
	if t.closer != nil {
		err = errors.Join(err, t.closer.Close())
	}
	if err != nil {
		return fmt.Errorf("close tpm: %w", err)
	}
	return nil
}

// object is a loaded TPM object.
type object struct {
	handle tpm2.TPMHandle
	name   tpm2.TPM2BName
	public []byte // TPMT_PUBLIC
}

// named returns the object for a command that needs no authorization of it.
func (o *object) named() tpm2.NamedHandle {
	return tpm2.NamedHandle{Handle: o.handle, Name: o.name}
}

// auth returns the object for a command that is authorized by s.
func (o *object) auth(s tpm2.Session) tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: o.handle, Name: o.name, Auth: s}
}

// salt returns a session option with which the session's key is known only to
// us and to the TPM that holds the object's private key.
func (o *object) salt() (tpm2.AuthOption, error) {
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](o.public)
	if err != nil {
		return nil, fmt.Errorf("decode public key: %w", err)
	}
	return tpm2.Salted(o.handle, *public), nil
}

// flush removes an object from the TPM and forgets it. A nil object is fine,
// and so is one that the TPM has lost because it was reset.
func (t *TPM) flush(o **object) error {
	if *o == nil {
		return nil
	}
	handle := (*o).handle
	*o = nil
	_, err := tpm2.FlushContext{FlushHandle: handle}.Execute(t.transport)
	if err != nil && !errors.Is(err, tpm2.TPMRCHandle) && !errors.Is(err, tpm2.TPMRCValue) {
		return fmt.Errorf("flush object %#x: %w", uint32(handle), err)
	}
	return nil
}

// hierarchy is a handle of a hierarchy with an empty authorization value.
func hierarchy(h tpm2.TPMHandle) tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: h, Auth: tpm2.PasswordAuth(nil)}
}

// createPrimary makes a primary key from a template. PCRs and outside info are for its
// creation data.
func (t *TPM) createPrimary(h tpm2.TPMHandle, what string, template tpm2.TPMTPublic, pcrs tpm2.TPMLPCRSelection, outside []byte) (*object, *tpm2.CreatePrimaryResponse, error) {
	rsp, err := tpm2.CreatePrimary{
		PrimaryHandle: hierarchy(h),
		InPublic:      tpm2.New2B(template),
		OutsideInfo:   tpm2.TPM2BData{Buffer: outside},
		CreationPCR:   pcrs,
	}.Execute(t.transport)
	if err != nil {
		return nil, nil, fmt.Errorf("create %s: %w", what, hint(err))
	}
	return &object{handle: rsp.ObjectHandle, name: rsp.Name, public: rsp.OutPublic.Bytes()}, rsp, nil
}

// hint adds to a TPM's error what can be done about it.
func hint(err error) error {
	switch {
	case errors.Is(err, tpm2.TPMRCAuthFail), errors.Is(err, tpm2.TPMRCBadAuth):
		return fmt.Errorf("%w: the hierarchy has an authorization value, which must be empty: clear the TPM in the firmware's setup", err)
	case errors.Is(err, tpm2.TPMRCHierarchy):
		return fmt.Errorf("%w: the hierarchy is disabled: enable it in the firmware's setup", err)
	case errors.Is(err, tpm2.TPMRCLockout):
		return fmt.Errorf("%w: too many wrong authorizations: clear the TPM in the firmware's setup or wait until it recovers", err)
	}
	return err
}

// retries bounds how often an operation is repeated because a PCR was extended
// while it ran, which any part of the system may do at any time.
const retries = 5

// whilePCRsChange repeats f while it fails because a PCR, even one that no
// policy names, was extended between two of its commands.
func whilePCRsChange(f func() error) error {
	for i := 1; ; i++ {
		err := f()
		if i == retries || !errors.Is(err, tpm2.TPMRCPCRChanged) {
			return err
		}
	}
}
