package sqlstore

import (
	"errors"
	"os"
)

// errReplaced: what this process has open is not what others find.
var errReplaced = errors.New("the file is no longer the one that was opened: it was moved, removed or restored meanwhile, so start the service again")

// replaced fails unless the path still names the file that was opened. A commit
// to any other is lost: whoever starts next does not know of it.
func (s *Store) replaced() error {
	st, err := os.Stat(s.path)
	if err != nil || !os.SameFile(s.file, st) {
		return errors.Join(errReplaced, err)
	}
	return nil
}
