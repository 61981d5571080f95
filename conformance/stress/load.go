// For `npm run conformance -- stress`: an address space asked by many goroutines, from a static Go program.
package main

import (
	"fmt"
	"os"
	"sync"
	"syscall"
	"unsafe"
)

const (
	ioasAlloc = 0x3b81
	option    = 0x3b87
)

type allocArg struct{ size, flags, outID uint32 }
type optionArg struct {
	size, id     uint32
	op, reserved uint16
	object       uint32
	value        uint64
}

func call(fd int, request uintptr, arg unsafe.Pointer) {
	if _, _, e := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), request, uintptr(arg)); e != 0 {
		fmt.Fprintln(os.Stderr, "load:", e)
		os.Exit(1)
	}
}

func main() {
	fd, err := syscall.Open("/dev/iommu", syscall.O_RDWR, 0)
	if err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
	var all sync.WaitGroup
	for g := 0; g < 8; g++ {
		all.Add(1)
		go func() {
			defer all.Done()
			alloc := allocArg{size: 12}
			call(fd, ioasAlloc, unsafe.Pointer(&alloc))
			for i := 0; i < 3000; i++ {
				o := optionArg{size: 24, id: 1, op: 1, object: alloc.outID}
				call(fd, option, unsafe.Pointer(&o))
			}
		}()
	}
	all.Wait()
	fmt.Println("done")
}
