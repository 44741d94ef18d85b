package storetest

import (
	"testing"

	"github.com/sealift/sealift/attest/server"
)

func TestMemory(t *testing.T) {
	Run(t, Subject{Open: func(*testing.T) server.Store { return new(Memory) }})
}
