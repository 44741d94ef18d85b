package dm

import (
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// CreateCrypt makes a dm-crypt device and returns its node. The key is handed
// over as a "logon" key, which user space can never read back, in the
// keyring of the calling thread. Once the table is loaded it is revoked, which
// destroys it at once, and unlinked; dm-crypt keeps its own copy.
//
// Keyrings hang on the credentials of an OS thread: without LockOSThread the
// table may be loaded by another thread, which does not find the key (ENOKEY).
func CreateCrypt(name, uuid string, c Crypt) (node string, err error) {
	description := "sealift:" + name
	target, err := c.target(description)
	if err != nil {
		return "", fmt.Errorf("create device %s: %w", name, err)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	id, err := unix.AddKey("logon", description, c.Key, unix.KEY_SPEC_THREAD_KEYRING)
	if err != nil {
		return "", fmt.Errorf("create device %s: hand the key to the kernel: %w", name, err)
	}
	defer func() {
		_, rerr := unix.KeyctlInt(unix.KEYCTL_REVOKE, id, 0, 0, 0)
		_, uerr := unix.KeyctlInt(unix.KEYCTL_UNLINK, id, unix.KEY_SPEC_THREAD_KEYRING, 0, 0)
		if cleanup := errors.Join(rerr, uerr); cleanup != nil {
			err = errors.Join(err, fmt.Errorf("create device %s: take the key out of the keyring: %w", name, cleanup))
		}
	}()
	return Create(name, uuid, []Target{target}, false)
}
