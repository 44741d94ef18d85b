package main

import (
	"context"

	"github.com/sealift/sealift/cmd/sealift-agent/internal/boot"
	"github.com/sealift/sealift/cmd/sealift-agent/internal/node"
)

// run is the agent in the root file system.
func run(m *machine) (boot.End, error) {
	m.openConsole()
	handover, err := node.ReadHandover(node.HandoverPath)
	if err != nil {
		return "", err
	}
	m.config = &handover.Config
	m.setLog(m.config.Debug)
	if m.cmdline, err = boot.ReadCmdline(); err != nil {
		return "", err
	}
	rootHash, err := m.cmdline.RootHash()
	if err != nil {
		return "", err
	}
	config, err := node.ReadConfig("/")
	if err != nil {
		return "", advise(err, "the image's root file system is incomplete: build the image again")
	}
	if err := boot.WriteSysctl("kernel.panic", panicDelay); err != nil {
		return "", err
	}
	m.console.Step("agent started: image %s, mode %s, %s %s", m.config.Image, argRun, config.Distro, config.Version)
	n := node.Node{Handover: handover, Config: config, RootHash: rootHash.String(), Console: m.console, Log: m.log}
	defer m.keepReporting(context.Background(), handover)()
	return n.Run(context.Background())
}
