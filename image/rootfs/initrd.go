package rootfs

import (
	"encoding/json"
	"fmt"

	"github.com/sealift/sealift/image/tree"
	"github.com/sealift/sealift/profiles"
)

// Initrd makes an initramfs of the mode that the agent's configuration names:
// the agent as /init, its configuration, and the kernel modules that it loads.
// The configuration's Image, Debug and Modules are filled in; the paths of the
// modules, in load order, are also returned. Callers add what only they have,
// such as the Secure Boot variables of an installer.
func (b *Builder) Initrd(cfg profiles.AgentConfig) (*tree.Tree, []string, error) {
	if cfg.Mode != profiles.ModeBoot && cfg.Mode != profiles.ModeInstall {
		return nil, nil, fmt.Errorf("build initramfs: mode is %q, want %q or %q", cfg.Mode, profiles.ModeBoot, profiles.ModeInstall)
	}
	t, err := b.initrd(&cfg)
	if err != nil {
		return nil, nil, fmt.Errorf("build initramfs for %s: %w", cfg.Mode, err)
	}
	return t, cfg.Modules, nil
}

func (b *Builder) initrd(cfg *profiles.AgentConfig) (*tree.Tree, error) {
	t := tree.New()
	for _, dir := range []string{"/dev", "/etc", "/proc", "/run", "/sys", "/sysroot", "/tmp"} {
		if err := t.Mkdir(dir, 0o755); err != nil {
			return nil, err
		}
	}
	if err := t.AddFile("/init", b.c.Agent, 0o755); err != nil {
		return nil, err
	}
	mods, err := b.modules.resolve(b.initrdModules(cfg.Mode), b.optionalModules(cfg.Mode))
	if err != nil {
		return nil, err
	}
	cfg.Modules = nil
	for _, m := range mods {
		if err := t.WriteFile(m.path, m.data, 0o644); err != nil {
			return nil, err
		}
		cfg.Modules = append(cfg.Modules, m.path)
	}
	cfg.Image = b.c.Profile.Name + " " + b.c.Profile.Version
	cfg.Debug = b.c.Profile.Debug
	raw, err := json.MarshalIndent(cfg, "", "  ")
	if err != nil {
		return nil, err
	}
	return t, t.WriteFile(profiles.AgentConfigPath, append(raw, '\n'), 0o644)
}
