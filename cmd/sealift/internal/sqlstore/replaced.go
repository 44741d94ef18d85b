package sqlstore

import (
	"errors"
	"os"
)

// errReplaced: what this process has open is not what others find.
var errReplaced = errors.New("the file is no longer the one that was opened: it was moved, removed or restored meanwhile, so start the service again")

// errWentBack: the file is the same, and what it holds is not. What this process
// remembers, that nothing is held above all, may not be so any more.
var errWentBack = errors.New("the audit log went back: the database was restored from a copy meanwhile and has lost decisions, so start the service again and compare its machines with what you know")

// errVersion: a program of another version has brought the tables to its own.
var errVersion = errors.New("another version of this program was started on the database meanwhile: run one of them")

// replaced fails unless the path still names the file that was opened. A commit
// to any other is lost: whoever starts next does not know of it.
func (s *Store) replaced() error {
	st, err := os.Stat(s.path)
	if err != nil || !os.SameFile(s.file, st) {
		return errors.Join(errReplaced, err)
	}
	return nil
}
