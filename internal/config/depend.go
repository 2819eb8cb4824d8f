package config

// DependenciesOf lists the VMs that must be ready before v starts, by name,
// each once: those that it names, and the others of the groups that it names.
func (c *Cluster) DependenciesOf(v *VM) []string {
	if len(v.DependsOn) == 0 {
		return nil
	}
	var out []string
	seen := map[string]bool{v.Name: true}
	add := func(name string) {
		if !seen[name] {
			seen[name] = true
			out = append(out, name)
		}
	}
	for _, name := range v.DependsOn {
		if c.VMByName(name) != nil {
			add(name)
			continue
		}
		for i := range c.VMs {
			for _, g := range c.VMs[i].Groups {
				if g == name {
					add(c.VMs[i].Name)
				}
			}
		}
	}
	return out
}

// vmGroups are the indexes of the VMs of each group.
func (c *Cluster) vmGroups() map[string][]int {
	out := map[string][]int{}
	for i := range c.VMs {
		for _, g := range c.VMs[i].Groups {
			out[g] = append(out[g], i)
		}
	}
	return out
}

// named are the indexes of what a dependency names: a VM, or else a group.
func (c *Cluster) named(index map[string]int, groups map[string][]int, name string) []int {
	if k, ok := index[name]; ok {
		return []int{k}
	}
	return groups[name]
}
