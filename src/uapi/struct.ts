/**
 * C structures as typed views of bytes.
 *
 * A structure is declared once, with its C name and its members in order:
 *
 *     const IommuDestroy = struct("iommu_destroy", { size: "u32", id: "u32" });
 *     const cmd = IommuDestroy.alloc({ size: IommuDestroy.size, id: 7 });
 *     cmd.id;    // 7, read from cmd.bytes on every access
 *
 * and the declaration yields both the layout and the TypeScript type of a view. That is why this layer alone is compiled
 * without `isolatedDeclarations` (see its tsconfig.json): the type of a structure is inferred from its members, and writing
 * it out a second time would allow the two to differ.
 *
 * Layout is that of x86-64 and arm64 C: little endian, every scalar aligned to its own width (so `__u64` and `__aligned_u64`
 * are both "u64"), the whole rounded up to the widest alignment; `packed` takes every alignment as 1. A member is
 *
 *     "u8" … "s64"          a scalar; 64-bit ones are bigint, narrower ones number
 *     ["u32", 6]            an array
 *     OtherStruct           a nested structure
 *     ["u8", "tail"]        a flexible array, the last member: no part of `size`; a view's tail reaches to the end of the bytes
 *                           the view was laid over, and which of its elements count is for another member to say
 *
 * and members named in `union` lie over each other, as those of an anonymous C union do.
 *
 * A store keeps the low bits of the value, as a C assignment does. An accessor is a property of the view's prototype over one
 * DataView, so a view that is kept and refilled (`view.bytes.set(…)`) costs no allocation.
 */

export type Scalar = "u8" | "u16" | "u32" | "u64" | "s8" | "s16" | "s32" | "s64";
type Element = Scalar | AnyStruct;
type ArrayType = readonly [element: Element, length: number | "tail"];
export type FieldType = Element | ArrayType;
export type Fields = Readonly<Record<string, FieldType>>;

/** A structure of whatever members: enough of it to nest it, to copy it and to print it. */
export interface AnyStruct {
  readonly name: string;
  readonly size: number;
  readonly align: number;
  readonly fields: Fields;
  readonly offsets: Readonly<Record<string, number>>;
  readonly widths: Readonly<Record<string, number>>;
  readonly union: readonly string[];
  /** Bytes in one element of the tail; 0 when there is none. */
  readonly tailElementSize: number;
  over(bytes: Uint8Array, offset?: number): StructView;
  toObject(view: StructView): Readonly<Record<string, unknown>>;
}

type ScalarValue<T extends Scalar> = T extends "u64" | "s64" ? bigint : number;
type ElementValue<T> = T extends Scalar ? ScalarValue<T> : T extends { over(bytes: Uint8Array): infer V } ? V : never;
type ArrayValue<T> = T extends "u8" ? Uint8Array : ArrayView<ElementValue<T>>;
type FieldValue<T> = T extends readonly [infer E, number | "tail"] ? ArrayValue<E> : ElementValue<T>;
type ElementInit<T> = T extends Scalar ? ScalarValue<T> : T extends { alloc(init?: infer I): unknown } ? I : never;
type FieldInit<T> = T extends readonly [infer E, number | "tail"] ? Iterable<ElementInit<E>> : ElementInit<T>;

/** A view with the members `F`: scalars are assigned, arrays and nested structures are written through. */
export type View<F extends Fields> = StructView & {
  -readonly [K in keyof F as F[K] extends Scalar ? K : never]: FieldValue<F[K]>;
} & {
  readonly [K in keyof F as F[K] extends Scalar ? never : K]: FieldValue<F[K]>;
};

/** Values to start a structure with; a member left out is zero. */
export type Init<F extends Fields> = { readonly [K in keyof F]?: FieldInit<F[K]> };

/** The view type of a structure: `ViewOf<typeof IommuDestroy>`. */
export type ViewOf<S extends { over(bytes: Uint8Array): unknown }> = ReturnType<S["over"]>;

export interface LayoutOptions<Name> {
  /** Every alignment is 1, as with `__attribute__((packed))`. */
  readonly packed?: boolean;
  /** Consecutive members that start at one offset and take the room of the widest. */
  readonly union?: readonly Name[];
}

/** Bytes seen as a structure; the members are accessors that `struct` adds in a subclass. */
export class StructView {
  /** Exactly the structure, or with a tail everything up to the end of the bytes given. Shared, not copied. */
  readonly bytes: Uint8Array;
  readonly dataView: DataView;

  constructor(bytes: Uint8Array) {
    this.bytes = bytes;
    this.dataView = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }
}

/** An array member whose elements are not bytes. */
export class ArrayView<T> implements Iterable<T> {
  readonly length: number;
  readonly #get: (index: number) => T;
  readonly #set: (index: number, value: unknown) => void;

  constructor(length: number, get: (index: number) => T, set: (index: number, value: unknown) => void) {
    this.length = length;
    this.#get = get;
    this.#set = set;
  }

  #check(index: number): void {
    if (!Number.isInteger(index) || index < 0 || index >= this.length) throw new RangeError(`element ${index} of ${this.length}`);
  }

  /** The element; a nested structure comes as a view, which writes through. */
  at(index: number): T {
    this.#check(index);
    return this.#get(index);
  }

  /** Stores a scalar, or copies the members given of a nested structure. */
  set(index: number, value: T extends StructView ? object : T): void {
    this.#check(index);
    this.#set(index, value);
  }

  *[Symbol.iterator](): IterableIterator<T> {
    for (let i = 0; i < this.length; i++) yield this.#get(i);
  }
}

/** A C structure: its layout, and the maker of its views. */
export class Struct<F extends Fields> implements AnyStruct {
  /** The C tag, such as `iommu_ioas_map`. */
  readonly name: string;
  readonly fields: F;
  /** `sizeof`, which leaves out a tail. */
  readonly size: number;
  readonly align: number;
  /** `offsetof` every member. */
  readonly offsets: { readonly [K in keyof F]: number };
  /** `sizeof` every member; 0 for a tail. */
  readonly widths: { readonly [K in keyof F]: number };
  /** The members that lie over each other. */
  readonly union: readonly string[];
  /** Bytes in one element of the tail; 0 when there is none. */
  readonly tailElementSize: number;
  readonly #tail: string | undefined;
  readonly #View: new (
    bytes: Uint8Array,
  ) => StructView;

  constructor(name: string, fields: F, options: LayoutOptions<keyof F & string>) {
    const layout = layOut(name, fields, options);
    this.name = name;
    this.fields = fields;
    this.size = layout.size;
    this.align = layout.align;
    this.offsets = layout.offsets as { [K in keyof F]: number };
    this.widths = layout.widths as { [K in keyof F]: number };
    this.union = options.union ?? [];
    this.#tail = layout.tail;
    const tail = layout.tail === undefined ? undefined : fields[layout.tail];
    this.tailElementSize = Array.isArray(tail) ? sizeOfElement(tail[0] as Element) : 0;
    this.#View = class extends StructView {};
    for (const [field, type] of Object.entries(fields)) {
      Object.defineProperty(this.#View.prototype, field, { enumerable: true, ...accessor(type, layout.offsets[field] as number) });
    }
  }

  /** Bytes of the structure with `count` elements in its tail. */
  sizeWith(count: number): number {
    return this.size + count * this.tailElementSize;
  }

  /** The first byte after a member: what the kernel calls `offsetofend`, and a command's least size. */
  endOf(field: keyof F): number {
    return this.offsets[field] + this.widths[field];
  }

  /** A new structure of zeros, then `init`; a tail has `tailLength` elements, or as many as `init` gives it. */
  alloc(init?: Init<F>, tailLength = 0): View<F> {
    let given: readonly unknown[] | undefined;
    if (init !== undefined && this.#tail !== undefined && init[this.#tail] !== undefined) {
      given = [...(init[this.#tail] as Iterable<unknown>)];
    }
    const view = this.over(new Uint8Array(this.sizeWith(Math.max(tailLength, given?.length ?? 0))));
    if (init !== undefined) this.assign(view, given === undefined ? init : { ...init, [this.#tail as string]: given });
    return view;
  }

  /** Lays a view over bytes that stay the caller's; RangeError when they end inside the structure. */
  over(bytes: Uint8Array, offset = 0): View<F> {
    if (offset < 0 || offset + this.size > bytes.length) {
      throw new RangeError(`${this.name} needs ${this.size} bytes at ${offset}, there are ${bytes.length}`);
    }
    const end = this.#tail === undefined ? offset + this.size : bytes.length;
    return new this.#View(offset === 0 && end === bytes.length ? bytes : bytes.subarray(offset, end)) as View<F>;
  }

  /** Stores the members named in `init` and leaves the others. */
  assign(view: StructView, init: Init<F>): void {
    const target = view as unknown as Record<string, unknown>;
    for (const [field, value] of Object.entries(init as Record<string, unknown>)) {
      const type = this.fields[field];
      if (type === undefined) throw new TypeError(`${this.name} has no member ${field}`);
      if (value === undefined) continue;
      if (typeof type === "string") target[field] = value;
      else if (type instanceof Struct) type.assign(target[field] as StructView, value as Init<Fields>);
      else {
        const array = target[field] as Uint8Array | ArrayView<unknown>;
        let i = 0;
        for (const element of value as Iterable<unknown>) {
          if (i >= array.length) throw new RangeError(`${this.name}.${field} holds ${array.length} elements`);
          if (array instanceof Uint8Array) array[i++] = element as number;
          else array.set(i++, element as object);
        }
      }
    }
  }

  /** A plain copy of the members, nested ones too, for printing and comparing. */
  toObject(view: StructView): Readonly<Record<string, unknown>> {
    const source = view as unknown as Record<string, unknown>;
    const plain = (type: Element, value: unknown): unknown => (typeof type === "string" ? value : type.toObject(value as StructView));
    return Object.fromEntries(
      Object.entries(this.fields).map(([field, type]) => [
        field,
        isArray(type) ? Array.from(source[field] as Iterable<unknown>, (v) => plain(type[0], v)) : plain(type, source[field]),
      ]),
    );
  }
}

/** Declares a structure; see the top of this file. */
export function struct<const F extends Fields>(name: string, fields: F, options: LayoutOptions<keyof F & string> = {}): Struct<F> {
  return new Struct(name, fields, options);
}

const SCALAR_SIZE: Readonly<Record<Scalar, number>> = { u8: 1, s8: 1, u16: 2, s16: 2, u32: 4, s32: 4, u64: 8, s64: 8 };

const isArray = (type: FieldType): type is ArrayType => Array.isArray(type);
const sizeOfElement = (type: Element): number => (typeof type === "string" ? SCALAR_SIZE[type] : type.size);
const alignOfElement = (type: Element): number => (typeof type === "string" ? SCALAR_SIZE[type] : type.align);
const roundUp = (value: number, align: number): number => Math.ceil(value / align) * align;

interface Layout {
  size: number;
  align: number;
  offsets: Record<string, number>;
  widths: Record<string, number>;
  tail: string | undefined;
}

function layOut(name: string, fields: Fields, options: LayoutOptions<string>): Layout {
  const layout: Layout = { size: 0, align: 1, offsets: {}, widths: {}, tail: undefined };
  const alignOf = (type: FieldType): number => (options.packed === true ? 1 : alignOfElement(isArray(type) ? type[0] : type));
  const widthOf = (type: FieldType): number =>
    isArray(type) ? sizeOfElement(type[0]) * (type[1] === "tail" ? 0 : type[1]) : sizeOfElement(type);

  const union = options.union ?? [];
  const names = Object.keys(fields);
  const first = union.length === 0 ? -1 : names.indexOf(union[0] as string);
  if (union.some((member, i) => names[first + i] !== member)) throw new TypeError(`${name}: a union's members must be consecutive`);
  const unionAlign = Math.max(1, ...union.map((member) => alignOf(fields[member] as FieldType)));

  let end = 0;
  let unionStart = 0;
  names.forEach((field, index) => {
    const type = fields[field] as FieldType;
    if (field === "bytes" || field === "dataView") throw new TypeError(`${name}: a view has a property ${field} of its own`);
    if (layout.tail !== undefined) throw new TypeError(`${name}: ${field} follows a flexible array`);
    if (isArray(type) && type[1] === "tail") layout.tail = field;

    const overlaid = index >= first && index < first + union.length;
    const align = overlaid ? unionAlign : alignOf(type);
    if (index === first) unionStart = roundUp(end, align);
    const offset = overlaid ? unionStart : roundUp(end, align);
    layout.offsets[field] = offset;
    layout.widths[field] = widthOf(type);
    // A union is as long as its widest member, rounded up to its own alignment.
    end = overlaid ? Math.max(end, roundUp(offset + widthOf(type), align)) : offset + widthOf(type);
    layout.align = Math.max(layout.align, align);
  });
  layout.size = roundUp(end, layout.align);
  return layout;
}

type Accessor = PropertyDescriptor & ThisType<StructView>;

function accessor(type: FieldType, offset: number): Accessor {
  if (isArray(type)) return arrayAccessor(type, offset);
  if (typeof type === "string") return scalarAccessor(type, offset);
  return {
    get() {
      return type.over(this.bytes, offset);
    },
  };
}

function arrayAccessor([element, length]: ArrayType, offset: number): Accessor {
  const step = sizeOfElement(element);
  const count = (view: StructView): number => (length === "tail" ? Math.floor((view.bytes.length - offset) / step) : length);
  if (element === "u8") {
    return {
      get() {
        return this.bytes.subarray(offset, offset + count(this));
      },
    };
  }
  return {
    get() {
      const data = this.dataView;
      const bytes = this.bytes;
      return typeof element === "string"
        ? new ArrayView(
            count(this),
            (i) => getScalar(element, data, offset + i * step),
            (i, value) => setScalar(element, data, offset + i * step, value as never),
          )
        : new ArrayView(
            count(this),
            (i) => element.over(bytes, offset + i * step),
            (i, value) => (element as Struct<Fields>).assign(element.over(bytes, offset + i * step), value as Init<Fields>),
          );
    },
  };
}

function getScalar(type: Scalar, data: DataView, offset: number): number | bigint {
  switch (type) {
    case "u8":
      return data.getUint8(offset);
    case "s8":
      return data.getInt8(offset);
    case "u16":
      return data.getUint16(offset, true);
    case "s16":
      return data.getInt16(offset, true);
    case "u32":
      return data.getUint32(offset, true);
    case "s32":
      return data.getInt32(offset, true);
    case "u64":
      return data.getBigUint64(offset, true);
    case "s64":
      return data.getBigInt64(offset, true);
  }
}

function setScalar(type: Scalar, data: DataView, offset: number, value: number & bigint): void {
  switch (type) {
    case "u8":
    case "s8":
      data.setUint8(offset, value);
      break;
    case "u16":
    case "s16":
      data.setUint16(offset, value, true);
      break;
    case "u32":
    case "s32":
      data.setUint32(offset, value, true);
      break;
    case "u64":
    case "s64":
      data.setBigUint64(offset, value, true);
  }
}

/** The widths a hot path reads have closures of their own; the engine then inlines one DataView method per member. */
function scalarAccessor(type: Scalar, offset: number): Accessor {
  switch (type) {
    case "u32":
      return {
        get() {
          return this.dataView.getUint32(offset, true);
        },
        set(value: number) {
          this.dataView.setUint32(offset, value, true);
        },
      };
    case "u64":
      return {
        get() {
          return this.dataView.getBigUint64(offset, true);
        },
        set(value: bigint) {
          this.dataView.setBigUint64(offset, value, true);
        },
      };
    default:
      return {
        get() {
          return getScalar(type, this.dataView, offset);
        },
        set(value: number & bigint) {
          setScalar(type, this.dataView, offset, value);
        },
      };
  }
}
